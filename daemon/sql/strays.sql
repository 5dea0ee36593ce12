-- Rows in lanes that no daemon serves, with what is needed to judge them.
--   $1 lanes text[], $2 limit integer
WITH stray AS MATERIALIZED (
    SELECT q.id, q.attempts, q.due_at, q.lane FROM outrider.queue q
     WHERE q.state = 'ready' AND q.lane = ANY ($1::text[])
     LIMIT $2
)
SELECT q.id, q.attempts, q.due_at, q.lane, o.created_at, o.recipient, o.channel, o.service, o.sender, o.body, o.template,
       o.variables::text AS variables, o.media, o.intent, o.on_ambiguous, o.subject, isfinite(o.send_at) AS finite,
       outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at) AS useless_at
  FROM stray q JOIN outrider.outbox o ON o.id = q.id
