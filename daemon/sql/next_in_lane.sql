-- The rows of a lane and level that will be claimed next, in that order, and until when each is of use.
--   $1 lane text, $2 level smallint, $3 after timestamptz, $4 after bigint (due time and number), $5 limit integer
WITH next AS MATERIALIZED (
    SELECT q.id, q.attempts, q.due_at, q.seq
      FROM outrider.queue q
     WHERE q.state = 'ready' AND q.lane = $1 AND q.level = $2 AND (q.due_at, q.seq) > ($3, $4) AND q.due_at <= now()
     ORDER BY q.due_at, q.seq LIMIT $5
)
SELECT n.id, n.attempts, n.due_at, n.seq, o.service,
       extract(epoch FROM least(greatest(o.send_at, o.created_at), '9900-01-01Z'))::float8 AS first_due,
       extract(epoch FROM outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at))::float8 AS expires_at
  FROM next n JOIN outrider.outbox o ON o.id = n.id
 ORDER BY n.due_at, n.seq
