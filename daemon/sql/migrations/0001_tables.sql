-- The tables: three tempos (decision 0001). outbox is asked and immutable, queue is to do and tiny, outcome is done and
-- narrow. A message is at any moment in exactly one of: queue, outcome; a test counts them.

CREATE SCHEMA IF NOT EXISTS outrider;

-- Time-ordered ids (RFC 9562, version 7): 48 bits of milliseconds, then chance. Postgres 18 has uuidv7(); 15 has not.
CREATE FUNCTION outrider.new_id() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    -- Bound when created, so no search_path can change its meaning; a SET here would keep it from being inlined.
    RETURN encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                    FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid;

-- The smallest id of a moment: where the weeks of the id-partitioned tables begin and end.
CREATE FUNCTION outrider.first_id(moment timestamptz) RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN rpad(lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid;

-- When a message is of no more use: the earlier of expires_at and validity from the due time; null: never. Bounded on all
-- sides, so that no date an application can write ("infinity", 4713 BC, a million years) overflows in here or in Python.
-- Counted in UTC: a day is 24 hours, whatever zone the session is in.
CREATE FUNCTION outrider.useless_at(created_at timestamptz, send_at timestamptz, validity interval, expires_at timestamptz)
    RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN validity IS NULL AND expires_at IS NULL THEN NULL
                ELSE greatest(least(expires_at,
                                    (least(greatest(send_at, created_at), '9900-01-01Z'::timestamptz) AT TIME ZONE 'UTC'
                                     + CASE WHEN validity IS NULL THEN NULL
                                            WHEN validity >= interval '10 years' THEN interval '10 years'
                                            WHEN validity <= interval '-10 years' THEN interval '-10 years'
                                            -- "5000000 years -1826250000 days" compares as nothing and overflows when added.
                                            WHEN extract(year FROM validity) NOT BETWEEN -100 AND 100
                                              OR extract(day FROM validity) NOT BETWEEN -40000 AND 40000
                                            THEN justify_interval(validity)
                                            ELSE validity END) AT TIME ZONE 'UTC',
                                    '9999-01-01Z'::timestamptz),
                              '0002-01-01Z'::timestamptz) END;

-- What was asked. Producers insert here and nowhere else; nothing is ever updated but a body that retention blanks.
-- No CHECKs: an application's transaction is never aborted for what a status and a reason can say (README, "bad rows").
CREATE TABLE outrider.outbox (
    id              uuid NOT NULL DEFAULT outrider.new_id(),
    seq             bigint GENERATED ALWAYS AS IDENTITY,              -- orders; ids need not commit in order
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    tenant          text DEFAULT '',         -- scope of idempotency, suppression and retention
    recipient       text,                    -- bare: a number, an address, a token
    channel         text DEFAULT 'sms',      -- sms email whatsapp rcs push webhook
    service         text,                    -- a pool of senders and its settings, from config.toml
    sender          text,                    -- pins one sender
    body            text,
    template        text,
    variables       jsonb,
    subject         text,
    content         jsonb,
    media           text[],
    intent          text,                    -- one of outrider.intent; without it, the least urgent level
    send_at         timestamptz,
    validity        interval,                -- of use for so long from the due time
    expires_at      timestamptz,             -- of no use from here on; the earlier of the two wins
    idempotency_key text,
    order_key       text,
    tags            jsonb,
    on_ambiguous    text,                    -- resolve resend drop
    fallback        jsonb,
    callback_url    text,
    traceparent     text,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

CREATE TABLE outrider.outbox_default PARTITION OF outrider.outbox DEFAULT;  -- ids of another kind

-- Service level of each intent. Seeded with the levels of core/message.py; [intents.NAME].level rewrites it.
CREATE TABLE outrider.intent (
    word  text PRIMARY KEY,
    level smallint NOT NULL CHECK (level BETWEEN 1 AND 3)
);
INSERT INTO outrider.intent VALUES
    ('otp', 1), ('notifications', 1), ('fraud', 1), ('security', 1),
    ('customercare', 2), ('delivery', 2), ('education', 2), ('events', 2),
    ('polling', 3), ('announcements', 3), ('marketing', 3);

-- What is still to do: one narrow row per unfinished message. The claim does not touch it (a claim record does), so a
-- row is written once, and deleted once, unless it comes back.
CREATE TABLE outrider.queue (
    id        uuid PRIMARY KEY,
    seq       bigint NOT NULL,
    state     text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'suspect', 'behind', 'unknown')),
              -- ready: claimable when due; suspect: for the inspector; behind: waits for an earlier row of its order_key;
              -- unknown: a provider may have it, due_at is when to look for evidence next
    lane      text NOT NULL,                 -- the service, or '@sender' for a pinned sender
    level     smallint NOT NULL,
    due_at    timestamptz NOT NULL,
    attempts  integer NOT NULL DEFAULT 0,    -- number of the last attempt that came back: names the next one
    spent     smallint NOT NULL DEFAULT 0,   -- attempts charged to its patience (a throttled one is not)
    order_key text,
    reason    text                           -- why it waits
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_ready ON outrider.queue (lane, level, due_at, seq) WHERE state = 'ready';
CREATE INDEX queue_apart ON outrider.queue (state, due_at) WHERE state <> 'ready';
CREATE INDEX queue_order ON outrider.queue (lane, order_key, seq) WHERE order_key IS NOT NULL;
CREATE INDEX queue_seq ON outrider.queue (seq);                       -- the inspector reads ahead by it

-- One row per batch in a daemon's hands: the durable intent, written in the transaction that takes the rows.
-- A message is in flight when an open claim names it with attempt = queue.attempts + 1.
CREATE TABLE outrider.claim (
    id       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    grp      text NOT NULL,
    owner    uuid NOT NULL,
    epoch    bigint NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ids      uuid[] NOT NULL,
    attempts integer[] NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

-- What became of it: one narrow row per message, from the first acceptance or final status on. rank: core/lifecycle.py.
CREATE TABLE outrider.outcome (
    id          uuid NOT NULL,
    status      text NOT NULL CHECK (status IN ('accepted', 'sent', 'delivered', 'read', 'undelivered', 'failed',
                                                'expired', 'canceled', 'suppressed', 'dead')),
    rank        smallint NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    segments    smallint,
    provider    text,
    sender      text,
    reference   text,                        -- the provider's id
    code        text,
    reason      text,
    accepted_at timestamptz,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE TABLE outrider.outcome_default PARTITION OF outrider.outcome DEFAULT;
-- What was accepted lately (sql/spoken.sql). In the order of writing, so a BRIN costs next to nothing.
CREATE INDEX outcome_accepted ON outrider.outcome USING brin (accepted_at) WITH (pages_per_range = 32, autosummarize = on);
-- Whose is this reference? For doubts (sql/known.sql), stray receipts (sql/parked.sql) and people. As a hash: 94 bytes of WAL and 1 µs of a message,
-- where a b-tree takes 128 and 3, and twice the room.
CREATE INDEX outcome_reference ON outrider.outcome USING hash (reference);
CREATE INDEX outcome_troubled ON outrider.outcome (status, updated_at)
    WHERE status IN ('dead', 'failed', 'undelivered');

-- Every try that did not end in a plain acceptance, and every decision about one. Append-only.
CREATE TABLE outrider.attempt (
    id        uuid NOT NULL,
    attempt   integer NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('exchange', 'evidence', 'decision', 'late')),
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    provider  text,
    sender    text,
    segments  smallint,
    outcome   text NOT NULL,                 -- accepted rejected throttled unreachable uncertain, or the decision taken
    code      text,
    reason    text,
    reference text,
    PRIMARY KEY (id, attempt, kind)
) PARTITION BY RANGE (id);
CREATE TABLE outrider.attempt_default PARTITION OF outrider.attempt DEFAULT;

-- Every receipt as it came. id is null while nobody knows whose it is.
CREATE TABLE outrider.receipt (
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    id        uuid,
    attempt   integer,
    provider  text NOT NULL,
    reference text NOT NULL,
    status    text NOT NULL,
    code      text,
    reason    text
) PARTITION BY RANGE (at);
CREATE TABLE outrider.receipt_default PARTITION OF outrider.receipt DEFAULT;
CREATE INDEX receipt_id ON outrider.receipt (id);
CREATE INDEX receipt_parked ON outrider.receipt (provider, reference) WHERE id IS NULL;

-- What people wrote to our senders.
CREATE TABLE outrider.inbound (
    provider  text NOT NULL,
    reference text NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    sender    text NOT NULL,                 -- ours
    recipient text NOT NULL,                 -- theirs
    body      text NOT NULL,
    opt_out   text,                          -- STOP START HELP, where the provider has recognised one
    details   jsonb,
    PRIMARY KEY (provider, reference)
);

-- Keys outlive their message. digest: sha256 of tenant and key, so that no key is too long for an index.
CREATE FUNCTION outrider.key_digest(tenant text, key text) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    -- The length keeps the two apart, whatever characters they hold: no tenant can guess itself into another's keys.
    RETURN sha256(convert_to(length(coalesce(tenant, '')) || ':' || coalesce(tenant, '') || key, 'UTF8'));

CREATE TABLE outrider.idempotency (
    digest bytea PRIMARY KEY,
    id     uuid NOT NULL,
    until  timestamptz NOT NULL
);

-- People who said stop. recipient as E.164.
CREATE TABLE outrider.suppression (
    tenant    text NOT NULL DEFAULT '',
    recipient text NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason    text NOT NULL,
    PRIMARY KEY (tenant, recipient)
);

-- What is paused: 'all', 'service:NAME', 'sender:ADDRESS' or 'provider:NAME'.
CREATE TABLE outrider.pause (
    what   text PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text NOT NULL
);

-- What SQL functions say to running daemons. xid lets a reader miss nothing although numbers commit out of order.
CREATE TABLE outrider.signal (
    seq  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL CHECK (kind IN ('cancel', 'pause', 'resume', 'opt_out', 'replay')),
    id   uuid,
    what text
);
CREATE INDEX signal_xid ON outrider.signal (xid);

-- Who speaks for a group of senders: one row per group, judged by the database clock. epoch fences every write.
CREATE TABLE outrider.lease (
    grp    text PRIMARY KEY,
    owner  uuid NOT NULL,
    epoch  bigint NOT NULL,
    until  timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Daemons, as they last described themselves.
CREATE TABLE outrider.instance (
    id          uuid PRIMARY KEY,            -- of the state folder: outlives restarts
    host        text NOT NULL,
    pid         integer NOT NULL,
    version     text NOT NULL,
    started_at  timestamptz NOT NULL,
    seen_at     timestamptz NOT NULL,
    config_hash text NOT NULL,
    services    text[] NOT NULL,
    groups      text[] NOT NULL,
    acked       xid8 NOT NULL DEFAULT '0'    -- every signal of an older transaction has taken effect here
) WITH (fillfactor = 50);

-- Where this database lives. A copy of it (restore, clone) finds another home here than its own, and must not send.
CREATE TABLE outrider.home (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    system_identifier bigint NOT NULL,
    database_oid      bigint NOT NULL,
    timeline          integer NOT NULL,      -- changes when a standby is promoted
    confirmed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    token_key         bytea NOT NULL DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
                      -- signs the tokens in callback URLs: any daemon of this database may be called back
);
