-- Messages in doubt whose evidence is due, with the attempt that raised it. Pushes each one's next look out at once, so
-- that no other look takes it.
--   $1 lanes text[], $2 limit integer, $3 seconds double precision   until the next look
WITH due AS (
    SELECT q.id FROM outrider.queue q
     WHERE q.state = 'unknown' AND q.due_at <= now() AND q.lane = ANY ($1::text[])
     ORDER BY q.due_at LIMIT $2 FOR UPDATE SKIP LOCKED
), pushed AS (
    UPDATE outrider.queue q SET due_at = clock_timestamp() + make_interval(secs => $3)
      FROM due WHERE q.id = due.id
    RETURNING q.id, q.lane, q.level, q.attempts, q.spent
)
SELECT p.id, p.lane, p.level, p.attempts, p.spent, a.provider, a.sender, a.segments, a.at AS since, a.reason,
       o.tenant, o.recipient, o.service, o.body, o.template, o.variables::text AS variables, o.intent, o.on_ambiguous,
       o.media, least(greatest(o.send_at, o.created_at), '9900-01-01Z') AS first_due,
       outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at) AS useless_at,
       -- A receipt may have come while it was still in flight. One that is not final stands in receipt alone.
       coalesce(u.status, (SELECT 'accepted' FROM outrider.receipt r
                            WHERE r.id = p.id AND r.attempt = p.attempts LIMIT 1)) AS heard
  FROM pushed p
  JOIN outrider.outbox o ON o.id = p.id
  LEFT JOIN outrider.attempt a ON a.id = p.id AND a.attempt = p.attempts AND a.kind = 'exchange'
  LEFT JOIN LATERAL (SELECT u.status FROM outrider.outcome u WHERE u.id = p.id OFFSET 0) AS u ON true  -- see receive.sql
