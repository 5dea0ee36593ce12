-- Reading: where every message is, and why.

-- First three characters and the last two: enough to recognise, not enough to call.
CREATE FUNCTION outrider.mask(recipient text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN length(recipient) > 7
                THEN left(recipient, 3) || repeat('*', least(length(recipient) - 5, 12)) || right(recipient, 2)
                ELSE repeat('*', length(recipient)) END;

-- Attempts in flight, from the open claims. A row that came back since (attempts moved on) is not among them.
CREATE VIEW outrider.in_flight AS
    SELECT c.id AS claim, c.grp, c.owner, c.epoch, c.taken_at, h.id, h.attempt
      FROM outrider.claim c CROSS JOIN LATERAL unnest(c.ids, c.attempts) AS h (id, attempt);

-- Read status here, by id, idempotency_key, or tags with a time range. No body, the recipient masked.
CREATE VIEW outrider.message AS
    SELECT o.id, o.seq, o.tenant, o.created_at, o.channel, o.service, o.intent, o.idempotency_key, o.tags,
           outrider.mask(o.recipient) AS recipient,
           CASE WHEN o.ended = 'accepted' AND EXISTS (SELECT FROM outrider.receipt r
                                                       WHERE r.id = o.id AND r.status = 'sent'
                                                         AND r.attempt >= o.attempts) THEN 'sent'
                WHEN o.ended IS NOT NULL THEN o.ended
                WHEN o.state = 'unknown' THEN 'unknown'
                WHEN o.in_hand THEN 'sending'
                ELSE 'queued' END AS status,
           CASE WHEN o.ended IN ('accepted', 'sent') AND o.accepted_at < now() - interval '72 hours'
                THEN 'unconfirmed'
                WHEN o.ended IS NOT NULL THEN o.end_reason
                WHEN o.in_hand OR o.reason IS NOT NULL THEN o.reason
                WHEN o.due_at > now() THEN 'not due before ' || o.due_at
                ELSE 'waiting for its turn' END AS reason,
           o.attempts, o.segments, o.provider, o.sender, o.reference, o.code, o.due_at, o.accepted_at, o.updated_at
      FROM (SELECT o.id, o.seq, o.tenant, o.created_at, o.channel, o.service, o.intent, o.idempotency_key, o.tags,
                   o.recipient, u.status AS ended, u.reason AS end_reason, coalesce(u.attempts, q.attempts) AS attempts,
                   u.segments, u.provider, u.sender, u.reference, u.code, u.accepted_at,
                   coalesce(u.updated_at, o.created_at) AS updated_at, q.state, q.reason, q.due_at,
                   -- Not a join: a claim whose COMMIT was lost names its rows a second time.
                   q.state = 'ready' AND EXISTS (SELECT FROM outrider.in_flight f
                                                  WHERE f.id = q.id AND f.attempt = q.attempts + 1) AS in_hand
              FROM outrider.outbox o
              LEFT JOIN outrider.outcome u ON u.id = o.id
              LEFT JOIN outrider.queue q ON q.id = o.id AND u.id IS NULL) AS o;

-- The whole story of one message, oldest first. No body, no number.
CREATE FUNCTION outrider.why(message uuid)
    RETURNS TABLE (at timestamptz, what text, detail text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM (
        SELECT o.created_at, 'inserted', concat_ws(', ', 'service ' || o.service, 'intent ' || o.intent,
               'sender ' || o.sender, 'send_at ' || o.send_at,
               'expires ' || outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at),
               'order_key set' || left(o.order_key, 0))
          FROM outrider.outbox o WHERE o.id = message
        UNION ALL
        SELECT f.taken_at, 'claimed', 'attempt ' || f.attempt || ' by ' || coalesce(i.host || '/' || i.pid, f.owner::text)
               || ', epoch ' || f.epoch
          FROM outrider.in_flight f LEFT JOIN outrider.instance i ON i.id = f.owner WHERE f.id = message
        UNION ALL
        SELECT a.at, a.kind || ' ' || a.attempt, concat_ws(', ', a.outcome, 'by ' || a.provider, 'from ' || a.sender,
               a.segments || ' segments', 'code ' || a.code, a.reason, a.reference)
          FROM outrider.attempt a WHERE a.id = message
        UNION ALL
        SELECT r.at, 'receipt', concat_ws(', ', r.status, 'from ' || r.provider, 'code ' || r.code, r.reason, r.reference)
          FROM outrider.receipt r WHERE r.id = message
        UNION ALL
        SELECT clock_timestamp(), 'now ' || m.status, concat_ws(', ', m.reason, 'by ' || m.provider, 'from ' || m.sender,
               m.segments || ' segments', m.reference, 'due ' || m.due_at, 'accepted ' || m.accepted_at)
          FROM outrider.message m WHERE m.id = message
    ) AS story (at, what, detail)
    ORDER BY at
$$;

-- What is in the queue, for people and metrics. Counting a million rows takes 0.2 s: sample it, do not poll it.
CREATE VIEW outrider.backlog AS
    SELECT lane, level, state, count(*) AS messages, min(due_at) FILTER (WHERE due_at <= now()) AS oldest_due
      FROM outrider.queue GROUP BY lane, level, state;

-- Dead letters: what ended badly and can be replayed.
CREATE VIEW outrider.dead_letter AS
    SELECT m.* FROM outrider.message m WHERE m.status IN ('dead', 'failed', 'undelivered');
