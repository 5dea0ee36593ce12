-- When each of these is asked for next, an hour after the given moment; 'infinity': never again, it is final without a
-- receipt. A last word that came meanwhile stays, and so does one still to come.
--   $1 ids uuid[], $2 moments timestamptz[]
UPDATE outrider.outcome u
   SET quiet_from = w.moment,
       reason = CASE WHEN w.moment = 'infinity' THEN 'unconfirmed' ELSE u.reason END,
       updated_at = CASE WHEN w.moment = 'infinity' THEN clock_timestamp() ELSE u.updated_at END
  FROM unnest($1::uuid[], $2::timestamptz[]) AS w (id, moment)
 WHERE u.id = w.id AND u.id = ANY ($1::uuid[])  -- said twice: see late.sql
   AND u.rank BETWEEN 10 AND 30  -- accepted or sent, in words that do not offer the planner the index of all that waits
RETURNING u.id
