-- What comes after the end: dead letters are sent again by filter, and what is done is forgotten when its time is over.

-- How long what is done is kept: [retention] of config.toml, which the daemon publishes here, so that one INSERT and one
-- look by hand see the same figures. intent '': for all that have no figure of their own.
CREATE TABLE outrider.keeping (
    what   text NOT NULL CHECK (what IN ('outbox', 'body', 'idempotency', 'receipts', 'dead')),
    intent text NOT NULL DEFAULT '',
    span   interval NOT NULL CHECK (span > interval '0'),
    PRIMARY KEY (what, intent)
);
INSERT INTO outrider.keeping VALUES
    ('outbox', '', '90 days'), ('body', '', '30 days'), ('idempotency', '', '30 days'), ('receipts', '', '30 days'),
    ('dead', '', '90 days'), ('dead', 'otp', '1 day');

CREATE FUNCTION outrider.kept(what text, intent text DEFAULT '') RETURNS interval
    LANGUAGE sql STABLE
    RETURN coalesce((SELECT k.span FROM outrider.keeping k WHERE k.what = kept.what AND k.intent = kept.intent),
                    (SELECT k.span FROM outrider.keeping k WHERE k.what = kept.what AND k.intent = ''));

-- How far the duties below have come: an id, or a block of a table.
CREATE TABLE outrider.progress (
    what  text PRIMARY KEY,
    upto  uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    block bigint NOT NULL DEFAULT 0
);
INSERT INTO outrider.progress (what) VALUES ('texts'), ('codes');

-- Messages the walk over old texts has passed because they had not ended, or are dead letters still good for a replay.
CREATE TABLE outrider.straggler (
    id      uuid PRIMARY KEY,
    look_at timestamptz NOT NULL
);
CREATE INDEX straggler_look ON outrider.straggler (look_at);

-- When retention took the text. The one thing about a message that ever changes in outbox.
ALTER TABLE outrider.outbox ADD blanked_at timestamptz;
CREATE INDEX outbox_codes ON outrider.outbox (id) WHERE intent = 'otp' AND blanked_at IS NULL;
CREATE INDEX outbox_default_created ON outrider.outbox_default (created_at);
-- In the order of writing, so a BRIN finds what has run out and costs an INSERT next to nothing.
CREATE INDEX idempotency_until ON outrider.idempotency
    USING brin (until timestamptz_minmax_multi_ops) WITH (pages_per_range = 32, autosummarize = on);

-- Rows that are apart, lane by lane: each is for whoever serves its lane, and for anybody once nobody does.
CREATE INDEX queue_apart_lane ON outrider.queue (state, lane, due_at) WHERE state IN ('suspect', 'unknown');

-- A replay is an event of its own: as a 'decision' it was lost where policy had decided about the same attempt before.
ALTER TABLE outrider.attempt DROP CONSTRAINT attempt_kind_check;
ALTER TABLE outrider.attempt ADD CONSTRAINT attempt_kind_check
    CHECK (kind IN ('exchange', 'evidence', 'decision', 'late', 'replay'));

-- The window of a key is a setting now. One expression of the intake changes; the rest of it stands in 0002.
DO $$
DECLARE
    intake text := pg_get_functiondef('outrider.intake()'::regprocedure);
BEGIN
    ASSERT strpos(intake, $s$interval '30 days'$s$) > 0, 'outrider.intake() is not the one of 0002';
    EXECUTE replace(intake, $s$interval '30 days'$s$, $s$outrider.kept('idempotency')$s$);
END
$$;


-- Dead letters.

-- What ended badly, newest first: by when it ended, by whom it was carried, why (LIKE, or exactly this code), and by what
-- the application said of it. most null: all.
CREATE FUNCTION outrider.dead_letters(
    since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, provider text DEFAULT NULL, reason text DEFAULT NULL,
    tags jsonb DEFAULT NULL, intent text DEFAULT NULL, service text DEFAULT NULL, tenant text DEFAULT NULL,
    status text DEFAULT NULL, most integer DEFAULT NULL)
    RETURNS TABLE (ended_at timestamptz, id uuid, of_tenant text, of_service text, of_intent text, ended text, code text,
                   why text, attempts integer, carrier text, sender text, recipient text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.updated_at, u.id, o.tenant, o.service, o.intent, u.status, u.code, u.reason, u.attempts, had.provider, u.sender,
           outrider.mask(o.recipient)
      FROM outrider.outcome u JOIN outrider.outbox o ON o.id = u.id
     -- Of what a decision ended, the attempt alone says who had it.
     CROSS JOIN LATERAL (SELECT coalesce(u.provider, (SELECT a.provider FROM outrider.attempt a
                                                       WHERE a.id = u.id AND a.provider IS NOT NULL
                                                       ORDER BY a.attempt DESC LIMIT 1)) AS provider) AS had
     WHERE u.status IN ('dead', 'failed', 'undelivered')
       AND (dead_letters.status IS NULL OR u.status = dead_letters.status)
       AND u.updated_at >= coalesce(dead_letters.since, '-infinity') AND u.updated_at < coalesce(dead_letters.until, 'infinity')
       AND (dead_letters.provider IS NULL OR had.provider = dead_letters.provider)
       AND (dead_letters.reason IS NULL OR coalesce(u.reason, '') ILIKE dead_letters.reason
            OR u.code = dead_letters.reason)
       AND (dead_letters.tags IS NULL OR o.tags @> dead_letters.tags)
       AND (dead_letters.intent IS NULL OR o.intent = dead_letters.intent)
       AND (dead_letters.service IS NULL OR o.service = dead_letters.service)
       AND (dead_letters.tenant IS NULL OR coalesce(o.tenant, '') = dead_letters.tenant)
     ORDER BY u.updated_at DESC, u.id DESC
     LIMIT dead_letters.most
$$;

-- What a text costs, at least: exact while it is plain GSM-7; what is not to be cut in two (emoji) may add to it. For
-- messages that were never tried; core/segments.py counts the others.
CREATE FUNCTION outrider.segments_at_least(body text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT CASE WHEN strange <> '' THEN CASE WHEN length(body) <= 70 THEN 1 ELSE ceil(length(body) / 67.0) END
                        WHEN length(body) + extended <= 160 THEN 1
                        ELSE ceil((length(body) + extended) / 153.0) END::integer
              FROM (SELECT length(translate(body, gsm.basic, '')) AS extended,
                           translate(body, gsm.basic || E'\f^{}\\[~]|€', '') AS strange
                      FROM (SELECT E'@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !"#¤%&''()*+,-./0123456789:;<=>?'
                                   '¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà' AS basic) AS gsm) AS t);

-- Whether an attempt may have arrived without anybody knowing: no answer, no receipt, and its provider, when asked, has
-- not denied it (core/doubt.py has the words).
CREATE FUNCTION outrider.may_have_arrived(message uuid) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (
        SELECT FROM outrider.attempt a
         WHERE a.id = message AND a.kind = 'exchange' AND a.outcome IN ('uncertain', 'lost')
           AND NOT EXISTS (SELECT FROM outrider.receipt r WHERE r.id = a.id AND r.attempt = a.attempt)
           AND NOT EXISTS (SELECT FROM outrider.attempt d
                            WHERE d.id = a.id AND d.attempt = a.attempt
                              AND (d.kind = 'evidence' OR d.kind = 'decision' AND d.reason LIKE '%never had it%')));

-- What a replay would answer about each message now: 'replayed', or why not.
CREATE FUNCTION outrider.replay_answers(ids uuid[], doubtful boolean DEFAULT false)
    RETURNS TABLE (message uuid, answer text, segments integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT asked.id,
           CASE WHEN o.id IS NULL THEN 'not found'
                WHEN q.state = 'unknown' THEN 'in doubt'
                WHEN q.id IS NOT NULL THEN 'already queued'
                WHEN u.status IN ('accepted', 'sent') THEN 'with its provider'
                WHEN u.status IN ('delivered', 'read') THEN 'delivered'
                WHEN u.status NOT IN ('dead', 'failed', 'undelivered') THEN u.status
                WHEN outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at) <= clock_timestamp() THEN 'expired'
                WHEN u.updated_at <= clock_timestamp() - outrider.kept('dead', o.intent) THEN 'too old'
                WHEN o.blanked_at IS NOT NULL THEN 'forgotten'
                WHEN EXISTS (SELECT FROM outrider.suppression s
                              WHERE s.recipient = o.recipient AND s.tenant IN ('', o.tenant)) THEN 'opted out'
                WHEN NOT doubtful AND outrider.may_have_arrived(o.id) THEN 'in doubt'
                ELSE 'replayed' END,
           coalesce(u.segments, (SELECT max(a.segments) FROM outrider.attempt a WHERE a.id = o.id),
                    outrider.segments_at_least(left(o.body, 1600)), 1)
      FROM (SELECT DISTINCT unnest(ids) AS id) AS asked
      LEFT JOIN outrider.outbox o ON o.id = asked.id
      LEFT JOIN outrider.outcome u ON u.id = asked.id
      LEFT JOIN outrider.queue q ON q.id = asked.id
$$;

-- What replay(since, until, ...) with the same words would do, and changes nothing: a row for each message that fits.
--   SELECT answer, count(*), sum(segments) FROM outrider.replay_preview(since => now() - interval '2 hours') GROUP BY 1;
CREATE FUNCTION outrider.replay_preview(
    since timestamptz, until timestamptz DEFAULT NULL, provider text DEFAULT NULL, reason text DEFAULT NULL,
    tags jsonb DEFAULT NULL, intent text DEFAULT NULL, service text DEFAULT NULL, tenant text DEFAULT NULL,
    status text DEFAULT NULL, doubtful boolean DEFAULT false)
    RETURNS TABLE (message uuid, answer text, segments integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.message, a.answer, a.segments
      FROM outrider.replay_answers(
          ARRAY(SELECT d.id FROM outrider.dead_letters(since, until, provider, reason, tags, intent, service, tenant, status) d),
          doubtful) AS a
     ORDER BY a.message
$$;

-- Send messages again that ended as undelivered, failed or dead, the oldest first and no more than so many a second. Says
-- of each what came of it. Of two at once each message is sent again by one; a receipt that comes meanwhile is heard.
CREATE FUNCTION outrider.replay(
    messages uuid[], per_second double precision, starting timestamptz DEFAULT NULL, doubtful boolean DEFAULT false)
    RETURNS TABLE (message uuid, answer text, segments integer, due_at timestamptz)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off  -- from key to key, whatever is believed about the tables
    SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    begun timestamptz;
BEGIN
    IF per_second IS NULL OR NOT per_second BETWEEN 0.001 AND 100000 OR cardinality(messages) > 10000 THEN
        RAISE EXCEPTION 'a replay takes up to 10,000 messages, and from 0.001 to 100,000 of them a second';
    END IF;
    -- Receipts and late acceptances write there first of all, so they are either seen below, or wait here and then see what
    -- is queued: without it both would be right, each for itself, and a message that had arrived would leave once more.
    LOCK TABLE ONLY outrider.receipt IN SHARE MODE;
    PERFORM FROM outrider.outcome u WHERE u.id = ANY (messages) ORDER BY u.id FOR UPDATE;
    PERFORM FROM outrider.outbox o WHERE o.id = ANY (messages) ORDER BY o.id FOR SHARE;  -- its text is not taken now
    begun := greatest(starting, clock_timestamp());
    RETURN QUERY
    WITH told AS MATERIALIZED (
        SELECT a.message, a.answer, a.segments,
               a.message IN (SELECT s.id FROM outrider.signal s WHERE s.kind = 'cancel') AS canceled
          FROM outrider.replay_answers(messages, replay.doubtful) AS a
    ), turn AS (
        SELECT o.id, o.seq, o.sender, o.service, o.intent, u.attempts, u.status, u.code, u.reason, t.canceled,
               outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at) AS useless_at,
               -- Daemons remember a cancellation that came too late, and have heard that it is over before this is due.
               begun + make_interval(secs => (row_number() OVER (ORDER BY o.seq) - 1) / per_second + t.canceled::integer)
                   AS due_at
          FROM told t JOIN outrider.outbox o ON o.id = t.message JOIN outrider.outcome u ON u.id = t.message
         WHERE t.answer = 'replayed'
    ), fit AS MATERIALIZED (
        SELECT t.*, greatest(t.attempts, (SELECT max(a.attempt) FROM outrider.attempt a WHERE a.id = t.id)) AS last
          FROM turn t WHERE t.useless_at IS NULL OR t.useless_at > t.due_at
    ), gone AS (
        DELETE FROM outrider.outcome u USING fit f WHERE u.id = f.id
    ), queued AS (
        INSERT INTO outrider.queue (id, seq, lane, level, due_at, attempts, reason)
        SELECT f.id, f.seq, CASE WHEN f.sender IS NOT NULL THEN '@' || left(f.sender, 100)
                                 ELSE coalesce(left(f.service, 100), 'default') END,
               coalesce((SELECT i.level FROM outrider.intent i WHERE i.word = f.intent), 3), f.due_at, f.last, 'replayed'
          FROM fit f
    ), story AS (
        -- Ended twice without a try in between (an inspector's no), it is replayed twice: both are told.
        INSERT INTO outrider.attempt AS a (id, attempt, kind, outcome, code, reason)
        SELECT f.id, f.last, 'replay', 'replayed', f.code, 'was ' || f.status || ': ' || coalesce(f.reason, '') FROM fit f
            ON CONFLICT (id, attempt, kind) DO UPDATE
           SET at = excluded.at, code = excluded.code, reason = left(a.reason || '; again, ' || excluded.reason, 512)
    ), over AS (
        DELETE FROM outrider.signal s USING fit f WHERE f.canceled AND s.id = f.id AND s.kind = 'cancel'
    ), said AS (
        INSERT INTO outrider.signal (kind, id, what)
        SELECT 'replay', CASE WHEN count(*) = 1 THEN min(f.id::text)::uuid END,
               CASE WHEN count(*) > 1 THEN count(*) || ' messages' END
          FROM fit f WHERE NOT f.canceled HAVING count(*) > 0
         UNION ALL SELECT 'replay', f.id, NULL FROM fit f WHERE f.canceled
    )
    SELECT t.message, CASE WHEN t.answer = 'replayed' AND f.id IS NULL THEN 'expired' ELSE t.answer END, t.segments, f.due_at
      FROM told t LEFT JOIN fit f ON f.id = t.message
     ORDER BY t.message;
END
$$;

-- The same by filter: what ended from since on (and before until), at most so many of them. All of it or nothing. Run it
-- again for the rest: what was replayed fits no more.
CREATE FUNCTION outrider.replay(
    since timestamptz, until timestamptz, provider text DEFAULT NULL, reason text DEFAULT NULL, tags jsonb DEFAULT NULL,
    intent text DEFAULT NULL, service text DEFAULT NULL, tenant text DEFAULT NULL, status text DEFAULT NULL,
    doubtful boolean DEFAULT false, per_second double precision DEFAULT 10, most integer DEFAULT 1000)
    RETURNS TABLE (message uuid, answer text, segments integer, due_at timestamptz)
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT r.message, r.answer, r.segments, r.due_at
      FROM outrider.replay(
          ARRAY(SELECT p.message
                  FROM outrider.replay_preview(since, until, provider, reason, tags, intent, service, tenant, status, doubtful) p
                 WHERE p.answer = 'replayed' ORDER BY p.message LIMIT most),
          per_second, doubtful => doubtful) AS r
$$;

-- One message, at once. Naming it is the decision about its doubts. False when it may not be (replay_answers says why).
CREATE OR REPLACE FUNCTION outrider.replay(message uuid) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT r.answer = 'replayed' FROM outrider.replay(ARRAY[message], 1, doubtful => true) AS r
$$;


-- Retention. Each of these does a bounded piece of work and returns how much it looked at: asked again while that is all
-- it was allowed. None takes what is unfinished.

-- Until when the text of a message is kept that ended so; null while it has not. A login code is worth nothing to anybody
-- but a thief; a dead letter keeps its text for as long as it can be replayed.
CREATE FUNCTION outrider.text_until(
    status text, ended_at timestamptz, accepted_at timestamptz, intent text, useless_at timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE
    RETURN (SELECT CASE WHEN status IN ('accepted', 'sent')  -- final after 72 hours without a receipt
                        THEN coalesce(accepted_at, ended_at) + interval '72 hours' + span
                        WHEN status IN ('dead', 'failed', 'undelivered')
                        THEN greatest(least(useless_at, ended_at + outrider.kept('dead', intent)), ended_at + span)
                        ELSE ended_at + span END
              FROM (SELECT CASE WHEN intent = 'otp' THEN interval '0' ELSE outrider.kept('body') END) AS s (span));

-- Blank those of ids whose time is over, and remember the others as stragglers where the walk will not come by again.
CREATE FUNCTION outrider.blank(ids uuid[], remember boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment timestamptz := clock_timestamp();
BEGIN
    -- Locked first, judged by the next statement with a snapshot of its own: a replay holds the row until it is queued.
    PERFORM FROM outrider.outbox o WHERE o.id = ANY (ids) ORDER BY o.id FOR NO KEY UPDATE;
    WITH seen AS MATERIALIZED (
        SELECT o.id, CASE WHEN NOT EXISTS (SELECT FROM outrider.queue q WHERE q.id = o.id)
                          THEN outrider.text_until(u.status, u.updated_at, u.accepted_at, o.intent,
                                   outrider.useless_at(o.created_at, o.send_at, o.validity, o.expires_at)) END AS until
          FROM outrider.outbox o
          -- OFFSET: one look into the index for each. A join, planned while there were few outcomes, read all for each.
          LEFT JOIN LATERAL (SELECT u.status, u.updated_at, u.accepted_at FROM outrider.outcome u
                              WHERE u.id = o.id OFFSET 0) AS u ON true
         WHERE o.id = ANY (ids) AND o.blanked_at IS NULL
    ), blanked AS (
        UPDATE outrider.outbox o
           SET body = NULL, variables = NULL, subject = NULL, content = NULL, media = NULL, fallback = NULL, blanked_at = moment
          FROM seen s WHERE o.id = s.id AND s.until <= moment
    ), kept AS (
        INSERT INTO outrider.straggler (id, look_at)
        SELECT id, coalesce(until, moment + interval '1 day') FROM seen WHERE remember AND (until <= moment) IS NOT TRUE
            ON CONFLICT (id) DO UPDATE SET look_at = excluded.look_at
    )
    DELETE FROM outrider.straggler s
     WHERE s.id = ANY (ids) AND NOT EXISTS (SELECT FROM seen WHERE seen.id = s.id AND (seen.until <= moment) IS NOT TRUE);
END
$$;

-- The texts of login codes that have ended. Goes round and round through those that still have one: a short list.
CREATE FUNCTION outrider.blank_codes(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
AS $$
DECLARE
    ids uuid[];
BEGIN
    PERFORM FROM outrider.progress WHERE what = 'codes' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;  -- another daemon is at it
    END IF;
    ids := ARRAY(SELECT o.id FROM outrider.outbox o
                  WHERE o.intent = 'otp' AND o.blanked_at IS NULL
                    AND o.id > (SELECT upto FROM outrider.progress WHERE what = 'codes')
                  ORDER BY o.id LIMIT most);
    PERFORM outrider.blank(ids, remember => false);
    UPDATE outrider.progress SET upto = CASE WHEN cardinality(ids) = most THEN ids[most]
                                             ELSE '00000000-0000-0000-0000-000000000000' END
     WHERE what = 'codes';
    RETURN cardinality(ids);
END
$$;

-- All other texts, in the order of ids and once each; then stragglers that are due; then what has an id of another kind.
CREATE FUNCTION outrider.blank_texts(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    old    timestamptz := moment - outrider.kept('body');
    ids    uuid[];
BEGIN
    PERFORM FROM outrider.progress WHERE what = 'texts' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    ids := ARRAY(SELECT o.id FROM outrider.outbox o
                  WHERE o.id > (SELECT upto FROM outrider.progress WHERE what = 'texts') AND o.id < outrider.first_id(old)
                  ORDER BY o.id LIMIT most);
    IF cardinality(ids) > 0 THEN
        UPDATE outrider.progress SET upto = ids[cardinality(ids)] WHERE what = 'texts';
    ELSE
        ids := ARRAY(SELECT s.id FROM outrider.straggler s WHERE s.look_at <= moment ORDER BY s.look_at LIMIT most);
    END IF;
    IF cardinality(ids) = 0 THEN
        ids := ARRAY(SELECT o.id FROM outrider.outbox_default o
                      WHERE o.created_at < old AND o.blanked_at IS NULL
                        AND NOT EXISTS (SELECT FROM outrider.straggler s WHERE s.id = o.id)
                      ORDER BY o.created_at LIMIT most);
    END IF;
    PERFORM outrider.blank(ids, remember => true);
    RETURN cardinality(ids);
END
$$;

-- Idempotency keys whose window is over.
CREATE FUNCTION outrider.forget_keys(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
AS $$
DECLARE
    moment timestamptz := clock_timestamp();  -- an index knows nothing of a clock that goes on
    gone   integer;
BEGIN
    WITH old AS (
        SELECT k.digest FROM outrider.idempotency k WHERE k.until <= moment LIMIT most FOR UPDATE SKIP LOCKED
    )
    DELETE FROM outrider.idempotency k USING old WHERE k.digest = old.digest;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- Signals that every daemon we know of has heeded. A cancellation stands for as long as its message is unfinished: one that
-- starts meanwhile must know of it (daemon/signals.py).
CREATE FUNCTION outrider.forget_signals(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone integer;
BEGIN
    WITH old AS (
        SELECT s.seq FROM outrider.signal s
         WHERE s.at < clock_timestamp() - interval '1 hour'
           AND s.xid < (SELECT coalesce(min(i.acked), pg_snapshot_xmin(pg_current_snapshot())) FROM outrider.instance i)
           AND (s.kind <> 'cancel' OR (SELECT q.id FROM outrider.queue q WHERE q.id = s.id) IS NULL)
         ORDER BY s.seq LIMIT most FOR UPDATE SKIP LOCKED
    )
    DELETE FROM outrider.signal s USING old WHERE s.seq = old.seq;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- Daemons not seen for a week, with nothing left in their name.
CREATE FUNCTION outrider.forget_instances(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone integer;
BEGIN
    DELETE FROM outrider.instance i
     WHERE i.id IN (SELECT d.id FROM outrider.instance d WHERE d.seen_at < clock_timestamp() - interval '7 days' LIMIT most)
       AND NOT EXISTS (SELECT FROM outrider.lease l WHERE l.owner = i.id)
       AND NOT EXISTS (SELECT FROM outrider.claim c WHERE c.owner = i.id);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- What has an id of another kind, or a late receipt for a week that is gone, lies in no week that could be dropped.
CREATE FUNCTION outrider.sweep_default(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old timestamptz := clock_timestamp() - greatest(outrider.kept('outbox'), interval '72 hours');
    ids uuid[];
    strays integer;
BEGIN
    ids := ARRAY(SELECT o.id FROM outrider.outbox_default o JOIN outrider.outcome u ON u.id = o.id
                  WHERE o.created_at < old AND u.updated_at < old
                    AND (u.status NOT IN ('dead', 'failed', 'undelivered')
                         OR u.updated_at < clock_timestamp() - outrider.kept('dead', o.intent))
                    AND NOT EXISTS (SELECT FROM outrider.queue q WHERE q.id = o.id)
                  ORDER BY o.created_at LIMIT most FOR UPDATE SKIP LOCKED);
    DELETE FROM outrider.attempt a WHERE a.id = ANY (ids);
    DELETE FROM outrider.outcome u WHERE u.id = ANY (ids);
    DELETE FROM outrider.straggler s WHERE s.id = ANY (ids);
    DELETE FROM outrider.outbox o WHERE o.id = ANY (ids);
    DELETE FROM outrider.outcome_default u
     WHERE u.id IN (SELECT d.id FROM outrider.outcome_default d
                     WHERE d.updated_at < old AND NOT EXISTS (SELECT FROM outrider.outbox o WHERE o.id = d.id) LIMIT most);
    GET DIAGNOSTICS strays = ROW_COUNT;
    RETURN greatest(cardinality(ids), strays);
END
$$;

-- Weeks in which everything is past its time and nothing is unfinished. A week goes whole (outbox, outcome and attempt) or
-- not at all. It needs the parents for itself for a moment: it gives up soon rather than let writers queue behind it.
CREATE FUNCTION outrider.drop_weeks() RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET lock_timeout = '200ms'
AS $$
DECLARE
    old     timestamptz := clock_timestamp() - greatest(outrider.kept('outbox'), interval '72 hours');
    oldest  timestamptz := clock_timestamp() - (SELECT max(span) FROM outrider.keeping WHERE what = 'dead');
    dropped text[] := '{}';
    week    text;
    parent  text;
    first   uuid;
    after   uuid;
BEGIN
    FOR week IN SELECT substr(c.relname, 8) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = 'outrider.outbox'::regclass AND c.relname ~ '^outbox_[0-9]{4}w[0-9]{2}$' ORDER BY 1 LOOP
        CONTINUE WHEN to_date(week, 'IYYY"w"IW') + interval '1 week' > old;
        first := outrider.first_id(to_date(week, 'IYYY"w"IW')::timestamptz);
        after := outrider.first_id(to_date(week, 'IYYY"w"IW') + interval '1 week');
        CONTINUE WHEN EXISTS (SELECT FROM outrider.queue q WHERE q.id >= first AND q.id < after)
            OR EXISTS (SELECT FROM outrider.outcome u WHERE u.id >= first AND u.id < after AND u.updated_at >= old)
            OR EXISTS (SELECT FROM outrider.outcome u JOIN outrider.outbox o ON o.id = u.id
                        WHERE u.id >= first AND u.id < after AND u.status IN ('dead', 'failed', 'undelivered')
                          AND u.updated_at >= oldest AND u.updated_at >= clock_timestamp() - outrider.kept('dead', o.intent));
        BEGIN
            LOCK TABLE ONLY outrider.outbox, ONLY outrider.outcome, ONLY outrider.attempt IN ACCESS EXCLUSIVE MODE;
            -- Asked again, now that nobody can add to it: a replay may have been under way.
            CONTINUE WHEN EXISTS (SELECT FROM outrider.queue q WHERE q.id >= first AND q.id < after)
                OR EXISTS (SELECT FROM outrider.in_flight f WHERE f.id >= first AND f.id < after);
            FOREACH parent IN ARRAY ARRAY['outbox', 'outcome', 'attempt'] LOOP
                EXECUTE format('DROP TABLE IF EXISTS outrider.%I', parent || '_' || week);
            END LOOP;
            DELETE FROM outrider.straggler s WHERE s.id >= first AND s.id < after;
            dropped := dropped || week;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'week % is not dropped now: it is in use', week;
        END;
    END LOOP;
    RETURN dropped;
END
$$;

-- Receipts past their time, week by week. That a message was sent may stand in its receipts alone (sql/receive.sql), so
-- they are first read once, some blocks at a time, and the word is passed on.
CREATE FUNCTION outrider.drop_receipts(most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET lock_timeout = '200ms'
AS $$
DECLARE
    old  timestamptz := clock_timestamp() - greatest(outrider.kept('receipts'), interval '72 hours');
    week text;
    page bigint;
BEGIN
    DELETE FROM outrider.receipt_default r
     WHERE r.ctid = ANY (ARRAY(SELECT d.ctid FROM outrider.receipt_default d
                                WHERE d.at < old AND NOT EXISTS (SELECT FROM outrider.queue q WHERE q.id = d.id)
                                  AND NOT EXISTS (SELECT FROM outrider.outcome u WHERE u.id = d.id AND u.status = 'accepted')
                                LIMIT most FOR UPDATE SKIP LOCKED));
    SELECT c.relname INTO week FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'outrider.receipt'::regclass AND c.relname ~ '^receipt_[0-9]{4}w[0-9]{2}$'
       AND to_date(substr(c.relname, 9), 'IYYY"w"IW') + interval '1 week' <= old
     ORDER BY 1 LIMIT 1;
    IF week IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO outrider.progress (what) VALUES (week) ON CONFLICT (what) DO NOTHING;
    SELECT block INTO page FROM outrider.progress WHERE what = week FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    EXECUTE format($q$
        UPDATE outrider.outcome u SET status = 'sent', rank = 30
          FROM (SELECT DISTINCT r.id, r.attempt FROM outrider.%I r
                 WHERE r.ctid >= '(%s,0)' AND r.ctid < '(%s,0)' AND r.status = 'sent') AS heard
         WHERE u.id = heard.id AND u.status = 'accepted' AND heard.attempt >= u.attempts
           AND NOT EXISTS (SELECT FROM outrider.queue q WHERE q.id = u.id) $q$, week, page, page + most);
    IF page + most < pg_relation_size(format('outrider.%I', week)::regclass) / current_setting('block_size')::bigint THEN
        UPDATE outrider.progress SET block = page + most WHERE what = week;
        RETURN most;
    END IF;
    -- What is in doubt may be resolved by one of them.
    IF EXISTS (SELECT FROM outrider.queue q JOIN outrider.receipt r ON r.id = q.id
                WHERE q.state = 'unknown' AND r.at < old) THEN
        RETURN 0;
    END IF;
    BEGIN
        EXECUTE format('DROP TABLE outrider.%I', week);
        DELETE FROM outrider.progress WHERE what = week;
        RETURN most;  -- there may be another
    EXCEPTION WHEN lock_not_available THEN
        RAISE WARNING '% is not dropped now: it is in use', week;
    END;
    RETURN 0;
END
$$;


-- Who may. The definer functions do the daemon's share: it deletes none of this by itself.
REVOKE ALL ON outrider.keeping, outrider.progress, outrider.straggler FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outrider FROM PUBLIC;
GRANT SELECT ON outrider.keeping TO outrider_reader, outrider_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON outrider.keeping TO outrider_daemon;
GRANT SELECT ON outrider.progress, outrider.straggler TO outrider_daemon;
GRANT EXECUTE ON FUNCTION outrider.dead_letters(timestamptz, timestamptz, text, text, jsonb, text, text, text, text, integer)
    TO outrider_reader, outrider_operator;
GRANT EXECUTE ON FUNCTION
    outrider.replay_preview(timestamptz, timestamptz, text, text, jsonb, text, text, text, text, boolean),
    outrider.replay(timestamptz, timestamptz, text, text, jsonb, text, text, text, text, boolean, double precision, integer),
    outrider.replay(uuid[], double precision, timestamptz, boolean), outrider.replay_answers(uuid[], boolean)
    TO outrider_operator;
GRANT EXECUTE ON FUNCTION outrider.blank_codes(integer), outrider.blank_texts(integer), outrider.forget_keys(integer),
    outrider.forget_signals(integer), outrider.forget_instances(integer), outrider.sweep_default(integer),
    outrider.drop_weeks(), outrider.drop_receipts(integer) TO outrider_daemon;
