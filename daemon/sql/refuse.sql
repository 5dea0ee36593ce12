-- Rows ended early by the inspector, unless they are in a daemon's hands by now; and suspects found innocent, let go.
-- Runs on the connection that claims: a claim in the making would not be seen here, and its row must not be taken away.
--   $1 ids uuid[], $2 attempts integer[], $3 statuses text[] ('ready' for the innocent), $4 ranks smallint[],
--   $5 reasons text[]
WITH word AS MATERIALIZED (
    SELECT w.*, q.lane, q.order_key, q.seq
      FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::smallint[], $5::text[])
           AS w (id, attempts, status, rank, reason)
      JOIN outrider.queue q ON q.id = w.id
     WHERE q.id = ANY ($1::uuid[])  -- said twice: see late.sql
       AND q.attempts = w.attempts AND q.state <> 'unknown'
       -- NOT IN is looked up in a hash; NOT EXISTS would walk over all that is in flight for each row.
       AND (q.id, q.attempts + 1) NOT IN (SELECT f.id, f.attempt FROM outrider.in_flight f)
       FOR UPDATE OF q SKIP LOCKED
), gone AS (
    DELETE FROM outrider.queue q USING word w WHERE q.id = w.id AND w.status <> 'ready'
    RETURNING w.*
), innocent AS (
    UPDATE outrider.queue q
       SET state = CASE WHEN w.behind THEN 'behind' ELSE 'ready' END,
           reason = CASE WHEN w.behind THEN 'behind an earlier message of its order_key' END
      FROM (SELECT word.id, word.order_key IS NOT NULL
                            AND EXISTS (SELECT FROM outrider.queue e
                                         WHERE e.lane = word.lane AND e.order_key = word.order_key AND e.seq < word.seq
                                           AND e.id NOT IN (SELECT id FROM gone)) AS behind
              FROM word WHERE word.status = 'ready') AS w
     WHERE q.id = w.id AND q.state IS NOT DISTINCT FROM 'suspect'
    RETURNING q.id
), told AS (
    INSERT INTO outrider.outcome (id, status, rank, attempts, reason)
    SELECT id, status, rank, attempts, reason FROM gone
        ON CONFLICT (id) DO NOTHING
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM (SELECT DISTINCT lane, order_key FROM gone WHERE order_key IS NOT NULL) AS k
     CROSS JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = k.lane AND e.order_key BETWEEN k.order_key AND k.order_key
                            AND e.id NOT IN (SELECT id FROM gone)
                          ORDER BY e.order_key, e.seq LIMIT 1) AS next
     WHERE q.id = next.id AND q.state IS NOT DISTINCT FROM 'behind'
)
SELECT id FROM gone
