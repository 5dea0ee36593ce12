-- Operating: SQL is the API; what a command or a page can do, one of these functions does.

-- Cancel a message: 'canceled' (it will not be sent), 'requested' (in a daemon's hands; it stops there if it still can)
-- or 'too_late' (a provider has it, or it has already ended).
CREATE FUNCTION outrider.cancel(message uuid) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    waiting outrider.queue;
BEGIN
    -- Waits for a claim in the making; the next statement then sees its record.
    SELECT * INTO waiting FROM outrider.queue WHERE id = message FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'too_late';
    END IF;
    IF waiting.state = 'unknown' OR EXISTS (SELECT FROM outrider.in_flight f
                                             WHERE f.id = message AND f.attempt = waiting.attempts + 1) THEN
        INSERT INTO outrider.signal (kind, id) VALUES ('cancel', message);
        RETURN 'requested';
    END IF;
    DELETE FROM outrider.queue WHERE id = message;
    INSERT INTO outrider.outcome (id, status, rank, attempts, reason)
    VALUES (message, 'canceled', 5, waiting.attempts, 'canceled by the application')
        ON CONFLICT (id) DO NOTHING;
    IF waiting.order_key IS NOT NULL THEN
        UPDATE outrider.queue q SET state = 'ready', reason = NULL
          FROM (SELECT e.id FROM outrider.queue e
                 WHERE e.lane = waiting.lane AND e.order_key = waiting.order_key ORDER BY e.seq LIMIT 1) AS next
         WHERE q.id = next.id AND q.state = 'behind';
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        -- This transaction cannot see a claim younger than itself: the daemons are told as well, and less is promised.
        INSERT INTO outrider.signal (kind, id) VALUES ('cancel', message);
        RETURN 'requested';
    END IF;
    RETURN 'canceled';
END
$$;

-- Pause 'all', 'service:NAME', 'sender:ADDRESS' or 'provider:NAME'. Rows wait; what is on the wire goes on.
CREATE FUNCTION outrider.pause(what text, reason text DEFAULT 'paused by an operator') RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF what !~ '^(all|(service|sender|provider):.+)$' THEN
        RAISE EXCEPTION 'cannot pause %: say all, service:NAME, sender:ADDRESS or provider:NAME', quote_literal(what);
    END IF;
    INSERT INTO outrider.pause (what, reason) VALUES (pause.what, pause.reason) ON CONFLICT ON CONSTRAINT pause_pkey DO NOTHING;
    INSERT INTO outrider.signal (kind, what) VALUES ('pause', pause.what);
END
$$;

CREATE FUNCTION outrider.resume(what text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM outrider.pause p WHERE p.what = resume.what;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outrider.signal (kind, what) VALUES ('resume', resume.what);
    RETURN true;
END
$$;

-- This person said stop. Effective on every daemon within a second.
CREATE FUNCTION outrider.opt_out(recipient text, tenant text DEFAULT '', reason text DEFAULT 'opted out') RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF recipient !~ '^\+[1-9][0-9]{6,14}$' THEN
        RAISE EXCEPTION 'opt_out wants a number as E.164, such as +15550100';
    END IF;
    INSERT INTO outrider.suppression (tenant, recipient, reason)
    VALUES (opt_out.tenant, opt_out.recipient, opt_out.reason) ON CONFLICT ON CONSTRAINT suppression_pkey DO NOTHING;
    INSERT INTO outrider.signal (kind, what) VALUES ('opt_out', opt_out.tenant || ' ' || opt_out.recipient);
END
$$;

-- Send a message again that ended as undelivered, failed or dead. False when it did not, or is of no more use.
CREATE FUNCTION outrider.replay(message uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ended outrider.outcome;
    asked outrider.outbox;
BEGIN
    SELECT * INTO ended FROM outrider.outcome WHERE id = message FOR UPDATE;
    SELECT * INTO asked FROM outrider.outbox WHERE id = message;
    IF asked.id IS NULL OR ended.status IS NULL OR ended.status NOT IN ('dead', 'failed', 'undelivered')
       OR outrider.useless_at(asked.created_at, asked.send_at, asked.validity, asked.expires_at) <= clock_timestamp() THEN
        RETURN false;
    END IF;
    DELETE FROM outrider.outcome WHERE id = message;
    INSERT INTO outrider.queue (id, seq, lane, level, due_at, attempts, reason)
    SELECT asked.id, asked.seq,
           CASE WHEN asked.sender IS NOT NULL THEN '@' || left(asked.sender, 100)
                ELSE coalesce(left(asked.service, 100), 'default') END,
           coalesce((SELECT level FROM outrider.intent WHERE word = asked.intent), 3),
           clock_timestamp(), ended.attempts, 'replayed'
        ON CONFLICT (id) DO NOTHING;
    INSERT INTO outrider.attempt (id, attempt, kind, outcome, code, reason)
    VALUES (message, ended.attempts, 'decision', 'replayed', ended.code, 'was ' || ended.status || ': ' || coalesce(ended.reason, ''))
        ON CONFLICT (id, attempt, kind) DO NOTHING;
    INSERT INTO outrider.signal (kind, id) VALUES ('replay', message);
    RETURN true;
END
$$;
