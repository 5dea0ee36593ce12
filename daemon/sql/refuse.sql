-- Rows ended early by the inspector, unless they are in a daemon's hands by now; and suspects found innocent, let go.
-- Runs on the connection that claims: a claim in the making would not be seen here, and its row must not be taken away.
--   $1 ids uuid[], $2 attempts integer[], $3 statuses text[] ('ready' for the innocent), $4 ranks smallint[],
--   $5 reasons text[]
WITH word AS MATERIALIZED (
    SELECT w.*, q.lane, q.order_key
      FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::smallint[], $5::text[])
           AS w (id, attempts, status, rank, reason)
      JOIN outrider.queue q ON q.id = w.id
     WHERE q.attempts = w.attempts AND q.state <> 'unknown'
       AND NOT EXISTS (SELECT FROM outrider.in_flight f WHERE f.id = q.id AND f.attempt = q.attempts + 1)
       FOR UPDATE OF q SKIP LOCKED
), innocent AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM word w WHERE q.id = w.id AND w.status = 'ready' AND q.state = 'suspect'
    RETURNING q.id
), gone AS (
    DELETE FROM outrider.queue q USING word w WHERE q.id = w.id AND w.status <> 'ready'
    RETURNING q.id, q.lane, q.order_key
), told AS (
    INSERT INTO outrider.outcome (id, status, rank, attempts, reason)
    SELECT w.id, w.status, w.rank, w.attempts, w.reason FROM word w JOIN gone USING (id)
        ON CONFLICT (id) DO NOTHING
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM gone g
     WHERE g.order_key IS NOT NULL AND q.lane = g.lane AND q.order_key = g.order_key AND q.state = 'behind'
       AND q.seq = (SELECT min(e.seq) FROM outrider.queue e
                     WHERE e.lane = g.lane AND e.order_key = g.order_key AND e.id <> ALL ($1::uuid[]))
)
SELECT id FROM gone
