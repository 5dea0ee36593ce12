-- The intake: what one INSERT into outbox sets in motion, per statement (a row trigger cost +112 µs a row, this +6).

CREATE FUNCTION outrider.intake() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    -- Plans are kept for the life of the application's session, and the first may be made while all is empty. Hence this,
    -- and below no joins but scalar subqueries, which can be nothing but one look into an index for each row: a join with
    -- the queue, kept from an empty one, took 15 s for 5,000 rows (docs/decisions/0001).
    SET enable_seqscan = off
    SET enable_bitmapscan = off
    SET jit = off  -- what is "off" and cannot be avoided counts as dear, and 0.3 s of compiling with it (seen on 15)
AS $$
DECLARE
    keyed   boolean;
    ordered boolean;
    urgent  boolean;
BEGIN
    SELECT coalesce(bool_or(idempotency_key IS NOT NULL), false), coalesce(bool_or(order_key IS NOT NULL), false)
      INTO keyed, ordered FROM fresh;

    IF keyed THEN
        -- The first of a key wins; whoever waits here for another transaction reads its answer below with a new
        -- snapshot. Sorted, so that two bulk inserts of the same keys cannot lock each other out.
        INSERT INTO outrider.idempotency AS held (digest, id, until)
        SELECT DISTINCT ON (digest) digest, id, clock_timestamp() + interval '30 days'
          FROM (SELECT outrider.key_digest(tenant, idempotency_key) AS digest, id, seq
                  FROM fresh WHERE idempotency_key IS NOT NULL) AS keys
         ORDER BY digest, seq
            ON CONFLICT (digest) DO UPDATE SET id = excluded.id, until = excluded.until
         WHERE held.until <= clock_timestamp();

        INSERT INTO outrider.outcome (id, status, rank, reason)
        SELECT id, 'suppressed', 5, 'duplicate of ' || first
          FROM (SELECT f.id, (SELECT k.id FROM outrider.idempotency k
                               WHERE k.digest = outrider.key_digest(f.tenant, f.idempotency_key)) AS first
                  FROM fresh f WHERE f.idempotency_key IS NOT NULL OFFSET 0) AS keyed
         WHERE first <> id;
    END IF;

    INSERT INTO outrider.queue (id, seq, state, lane, level, due_at, order_key)
    SELECT f.id, f.seq,
           -- Cheap doubts are sorted out here, so that a bad row is judged at once however long the queue is;
           -- the judgement itself (reasons, statuses) is the inspector's, core/inspection.py.
           CASE WHEN f.recipient IS NULL OR f.recipient !~ '^\+[1-9][0-9]{6,14}$'
                  OR f.channel IS DISTINCT FROM 'sms'
                  OR (f.template IS NULL AND (f.body IS NULL OR f.body !~ '\S') AND f.media IS NULL)
                  OR length(f.body) > 1600
                  OR array_ndims(f.media) > 1 OR cardinality(f.media) > 10
                  OR array_to_string(f.media, ' ', '!') !~ '^(https?://\S+( |$))*$'
                  OR f.template IS NOT NULL OR f.variables IS NOT NULL
                  OR (f.intent IS NOT NULL AND i.level IS NULL)
                  OR f.on_ambiguous NOT IN ('resolve', 'resend', 'drop')
                  OR outrider.useless_at(f.created_at, f.send_at, f.validity, f.expires_at)
                     <= greatest(f.send_at, clock_timestamp())
                  OR NOT isfinite(f.send_at)
                  OR length(f.service) > 100 OR length(f.sender) > 100
                THEN 'suspect' ELSE 'ready' END,
           CASE WHEN f.sender IS NOT NULL THEN '@' || left(f.sender, 100) ELSE coalesce(left(f.service, 100), 'default') END,
           coalesce(i.level, 3),
           CASE WHEN isfinite(f.send_at) THEN least(greatest(f.send_at, f.created_at), '9900-01-01Z') ELSE f.created_at END,
           -- A one-time password waits for nobody; a row of the future does not block those of today.
           CASE WHEN f.intent = 'otp' OR f.send_at > clock_timestamp() THEN NULL
                WHEN length(f.order_key) > 100 THEN encode(sha256(convert_to(f.order_key, 'UTF8')), 'hex')
                ELSE f.order_key END
      FROM fresh f
      LEFT JOIN outrider.intent i ON i.word = f.intent
     WHERE f.idempotency_key IS NULL
        OR f.id = (SELECT k.id FROM outrider.idempotency k
                    WHERE k.digest = outrider.key_digest(f.tenant, f.idempotency_key));

    IF ordered THEN
        -- Only the first row of a key is claimable; settling it frees the next (sql/settle.sql), and the janitor frees
        -- those whose predecessor was settled while this transaction was still open.
        UPDATE outrider.queue q SET state = 'behind', reason = 'behind an earlier message of its order_key'
         WHERE q.id = ANY (ARRAY(SELECT f.id FROM fresh f WHERE f.order_key IS NOT NULL)) AND q.state <> 'suspect'
           -- BETWEEN, not =: the order it leaves to be asked for is that of one index, queue_order.
           AND q.seq > (SELECT e.seq FROM outrider.queue e
                         WHERE e.lane = q.lane AND e.order_key BETWEEN q.order_key AND q.order_key
                         ORDER BY e.order_key, e.seq LIMIT 1);
    END IF;

    -- Wakes idle daemons, for urgent rows only: on every INSERT it would halve the rate of many writers (1,901 of 3,811).
    SELECT bool_or(i.level = 1) INTO urgent FROM fresh f JOIN outrider.intent i ON i.word = f.intent;
    IF urgent THEN
        PERFORM pg_notify('outrider', '');
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER intake AFTER INSERT ON outrider.outbox
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION outrider.intake();

-- Weeks: outbox, outcome and attempt by ranges of the id, receipt by time. The daemon has no right to DDL; this has.
-- A new week locks the default partition against everything: it gives up soon rather than let writers queue behind it,
-- and is asked for again within the hour. Weeks begin on Mondays in UTC, whatever zone the session is in.
CREATE FUNCTION outrider.make_weeks(ahead integer DEFAULT 4) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET lock_timeout = '1s'
AS $$
DECLARE
    monday timestamptz;
    parent text;
    week   text;
    made   integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('outrider.make_weeks')) THEN
        RETURN 0;  -- somebody else is at it
    END IF;
    FOR k IN 0..least(ahead, 52) LOOP
        monday := date_trunc('week', clock_timestamp(), 'UTC') + make_interval(weeks => k);
        FOREACH parent IN ARRAY ARRAY['outbox', 'outcome', 'attempt', 'receipt'] LOOP
            week := parent || '_' || to_char(monday AT TIME ZONE 'UTC', 'IYYY"w"IW');
            CONTINUE WHEN to_regclass('outrider.' || week) IS NOT NULL;
            BEGIN
                IF parent = 'receipt' THEN
                    EXECUTE format('CREATE TABLE outrider.%I PARTITION OF outrider.receipt FOR VALUES FROM (%L) TO (%L)',
                                   week, monday, monday + interval '1 week');
                ELSE
                    EXECUTE format('CREATE TABLE outrider.%I PARTITION OF outrider.%I FOR VALUES FROM (%L) TO (%L)%s',
                                   week, parent, outrider.first_id(monday), outrider.first_id(monday + interval '1 week'),
                                   CASE parent WHEN 'outcome' THEN ' WITH (fillfactor = 70)' ELSE '' END);
                END IF;
                made := made + 1;
            EXCEPTION
                -- Rows of that week lie in the default partition already (nobody made weeks for a month, or ids of
                -- another kind fell there by chance): they stay there, and so do those still to come.
                WHEN check_violation THEN
                    RAISE WARNING 'week % is not made: rows of it are in outrider.%_default', week, parent;
                WHEN lock_not_available THEN
                    RAISE WARNING 'week % is not made now: outrider.%_default is in use', week, parent;
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
SELECT outrider.make_weeks();
