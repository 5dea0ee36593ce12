-- Rows that stand as if they had never been sent, although the dispatch log says that they left: the database has lost a
-- claim it had confirmed (a standby was promoted, an older copy restored, commits were not durable). What is in flight by
-- an open claim is not forgotten. plain: it was sent once and no more since the attempt that is about to be made again.
--   $1 ids uuid[], $2 attempts integer[]    what the dispatch log knows
SELECT q.id, q.lane, q.attempts + 1 AS attempt, max(d.attempt) = q.attempts + 1 AS plain, clock_timestamp() AS taken_at
  FROM unnest($1::uuid[], $2::integer[]) AS d (id, attempt)
  JOIN outrider.queue q ON q.id = d.id
 WHERE q.state <> 'unknown' AND q.attempts < d.attempt
   AND (q.id, q.attempts + 1) NOT IN (SELECT f.id, f.attempt FROM outrider.in_flight f)
 GROUP BY q.id
