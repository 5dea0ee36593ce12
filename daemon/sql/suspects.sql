-- Rows the intake has doubts about, with what is needed to judge them: the lane first in which one has waited for longest.
--   $1 lanes text[]   that have such rows, $2 limit integer
-- Lane by lane along queue_apart_lane: what stands in others, however much, is not walked over.
WITH lane AS MATERIALIZED (
    SELECT l.lane
      FROM unnest($1::text[]) AS l (lane)
     CROSS JOIN LATERAL (SELECT q.due_at FROM outrider.queue q
                          WHERE q.state = 'suspect' AND q.lane = l.lane ORDER BY q.due_at LIMIT 1) AS head
     ORDER BY head.due_at
), suspect AS MATERIALIZED (
    SELECT s.* FROM lane
     CROSS JOIN LATERAL (SELECT q.id, q.attempts, q.due_at, q.lane FROM outrider.queue q
                          WHERE q.state = 'suspect' AND q.lane = lane.lane ORDER BY q.due_at LIMIT $2) AS s
     LIMIT $2
)
SELECT q.id, q.attempts, q.due_at, q.lane, o.created_at, o.recipient, o.channel, o.service, o.sender, o.body, o.template,
       o.variables::text AS variables, o.media, o.intent, o.on_ambiguous, o.subject, isfinite(o.send_at) AS finite,
       outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at) AS useless_at
  FROM suspect q JOIN outrider.outbox o ON o.id = q.id
