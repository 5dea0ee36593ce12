-- Reconciliation: what is overdue is asked for, what nobody can place is parked, what contradicts itself is reported, and
-- the books are balanced.

-- Since when its provider has said nothing: asked for an hour later. Null: since accepted_at, so that the road of a message
-- pays no byte for it. 'infinity': no longer asked for (after 72 hours, with reason 'unconfirmed').
ALTER TABLE outrider.outcome ADD quiet_from timestamptz;
-- Who has no last word, the quietest first: one entry for a message when it is accepted, none once it has arrived.
CREATE INDEX outcome_waiting ON outrider.outcome ((coalesce(quiet_from, accepted_at))) WHERE status IN ('accepted', 'sent');

-- Receipts whose message nobody knows yet: the receipts themselves stand in receipt, this is when to look again.
CREATE TABLE outrider.parked (
    provider  text NOT NULL,
    reference text NOT NULL,
    id        uuid,                          -- what its token named, if it was one of ours
    attempt   integer,
    since     timestamptz NOT NULL DEFAULT clock_timestamp(),
    look_at   timestamptz NOT NULL DEFAULT clock_timestamp() + interval '1 minute',
    PRIMARY KEY (provider, reference)
);
CREATE INDEX parked_look ON outrider.parked (look_at);

-- What ought not to be, once for each message and reference. Holds neither a number nor a text.
CREATE TABLE outrider.anomaly (
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind      text NOT NULL CHECK (kind IN ('unsent', 'orphan', 'two_references', 'contradiction', 'segments',
                                            'unknown_there', 'lost')),
              -- unsent: a receipt for an attempt we have no record of; orphan: a receipt nobody could place for 72 hours;
              -- two_references: one attempt, two messages of a provider; contradiction: arrived and did not arrive;
              -- segments: its provider counts otherwise; unknown_there: accepted, and unknown to its provider when asked;
              -- lost: neither in queue nor in outcome (see missing)
    id        uuid,
    attempt   integer,
    provider  text,
    reference text,
    detail    text NOT NULL
);
CREATE UNIQUE INDEX anomaly_once ON outrider.anomaly (kind, id, reference) NULLS NOT DISTINCT;
CREATE INDEX anomaly_at ON outrider.anomaly (at);


-- The books: every message inserted is in outcome (settled) or in queue (open), or the difference is not nought.
-- Kept by pages of 10,000 row numbers. A page is counted again only when something in it has moved, so a look costs what has
-- changed and not what there is. In the order of writing, so a BRIN finds a page and costs an INSERT next to nothing.
CREATE INDEX outbox_seq ON outrider.outbox USING brin (seq) WITH (pages_per_range = 64, autosummarize = on);

CREATE TABLE outrider.page (
    number     bigint PRIMARY KEY,           -- of rows with seq / 10000 = number
    queued     bigint NOT NULL,              -- how the queue stood when it was counted: rows,
    seqs       numeric NOT NULL,             -- and the sum of their numbers
    difference bigint NOT NULL,
    counted_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX page_open ON outrider.page (number) WHERE queued > 0 OR difference <> 0;
CREATE INDEX page_counted ON outrider.page (counted_at);

CREATE TABLE outrider.tally (
    page     bigint NOT NULL,
    day      date NOT NULL,                  -- when it was inserted, UTC
    intent   text NOT NULL,                  -- '' for none, or a word we do not know
    inserted bigint NOT NULL,
    settled  bigint NOT NULL,                -- in outcome: a provider has it, or it has ended
    open     bigint NOT NULL,                -- in queue alone
    PRIMARY KEY (page, day, intent)
) WITH (fillfactor = 70);

-- As of the last look, at most a minute ago; a page in which nothing moved, as it was counted then.
CREATE VIEW outrider.conservation AS
    SELECT day, intent, sum(inserted)::bigint AS inserted, sum(settled)::bigint AS settled, sum(open)::bigint AS open,
           sum(inserted - settled - open)::bigint AS difference
      FROM outrider.tally GROUP BY day, intent;

-- Count the pages in which something has moved, the newest, some never counted yet, and a few of those counted longest ago,
-- at most so many. Returns the difference over all pages; null when somebody else looked within the last seconds.
CREATE FUNCTION outrider.balance(most integer DEFAULT 20, patience double precision DEFAULT 0) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
    SET enable_seqscan = off
    SET enable_hashjoin = off   -- of 10,000 rows each is looked up; a hash of a whole week is never worth it
    SET enable_mergejoin = off
    SET jit = off
AS $$
DECLARE
    top     bigint := (SELECT last_value / 10000 FROM outrider.outbox_seq_seq);
    counted bigint := coalesce((SELECT max(number) FROM outrider.page), -1);
    wanted  bigint[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('outrider.balance'))
       OR patience > 0 AND EXISTS (SELECT FROM outrider.page p
                                    WHERE p.counted_at > clock_timestamp() - make_interval(secs => patience)) THEN
        RETURN NULL;
    END IF;
    wanted := ARRAY(
        SELECT number
          FROM (SELECT coalesce(s.number, p.number) AS number, 1 AS urgency
                  FROM (SELECT q.seq / 10000 AS number, count(*) AS queued, sum(q.seq) AS seqs
                          FROM outrider.queue q GROUP BY 1) AS s
                  FULL JOIN (SELECT * FROM outrider.page p WHERE p.queued > 0 OR p.difference <> 0) AS p ON p.number = s.number
                 WHERE coalesce(s.number, p.number) <= counted
                   AND (s.queued, s.seqs) IS DISTINCT FROM (nullif(p.queued, 0), nullif(p.seqs, 0)) OR p.difference <> 0
                UNION ALL
                SELECT g, 2 FROM generate_series(greatest(counted - 1, 0), least(top, counted + most)) AS g
                UNION ALL
                (SELECT p.number, 3 FROM outrider.page p ORDER BY p.counted_at LIMIT 3)) AS due
         GROUP BY number ORDER BY min(urgency), number LIMIT most);

    WITH count AS MATERIALIZED (
        SELECT w.number, t.*
          FROM unnest(wanted) AS w (number)
         CROSS JOIN LATERAL (
            SELECT (o.created_at AT TIME ZONE 'UTC')::date AS day, coalesce(i.word, '') AS intent, count(*) AS inserted,
                   count(u.id) AS settled, count(q.id) FILTER (WHERE u.id IS NULL) AS open
              FROM outrider.outbox o
              -- OFFSET: one look into the index for each, whatever is believed of the tables.
              LEFT JOIN LATERAL (SELECT u.id FROM outrider.outcome u WHERE u.id = o.id OFFSET 0) AS u ON true
              LEFT JOIN LATERAL (SELECT q.id FROM outrider.queue q WHERE q.id = o.id OFFSET 0) AS q ON true
              LEFT JOIN outrider.intent i ON i.word = o.intent
             WHERE o.seq >= w.number * 10000 AND o.seq < (w.number + 1) * 10000
             GROUP BY 1, 2) AS t
    ), gone AS (
        DELETE FROM outrider.tally t
         WHERE t.page = ANY (wanted) AND (t.page, t.day, t.intent) NOT IN (SELECT number, day, intent FROM count)
    ), told AS (
        INSERT INTO outrider.tally AS t (page, day, intent, inserted, settled, open)
        SELECT number, day, intent, inserted, settled, open FROM count
            ON CONFLICT (page, day, intent) DO UPDATE
           SET inserted = excluded.inserted, settled = excluded.settled, open = excluded.open
    )
    INSERT INTO outrider.page AS p (number, queued, seqs, difference)
    SELECT w.number, coalesce(s.queued, 0), coalesce(s.seqs, 0),
           coalesce((SELECT sum(c.inserted - c.settled - c.open) FROM count c WHERE c.number = w.number), 0)
      FROM unnest(wanted) AS w (number)
      LEFT JOIN LATERAL (SELECT count(*) AS queued, sum(q.seq) AS seqs FROM outrider.queue q
                          WHERE q.seq >= w.number * 10000 AND q.seq < (w.number + 1) * 10000) AS s ON true
        ON CONFLICT (number) DO UPDATE
       SET queued = excluded.queued, seqs = excluded.seqs, difference = excluded.difference, counted_at = excluded.counted_at;

    -- Whole pages go with their weeks.
    DELETE FROM outrider.page p
     WHERE p.number = ANY (wanted) AND p.number < greatest(counted, top) - 1 AND p.queued = 0
       AND NOT EXISTS (SELECT FROM outrider.tally t WHERE t.page = p.number);
    RETURN (SELECT coalesce(sum(p.difference), 0) FROM outrider.page p WHERE p.queued > 0 OR p.difference <> 0);
END
$$;

-- The messages behind a difference: inserted, and in neither place.
CREATE FUNCTION outrider.missing(most integer DEFAULT 100)
    RETURNS TABLE (id uuid, seq bigint, created_at timestamptz, service text, intent text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET enable_hashjoin = off
    SET enable_mergejoin = off
    SET jit = off
AS $$
    SELECT o.id, o.seq, o.created_at, o.service, o.intent
      FROM outrider.page p
      -- OFFSET: page by page, and no walk through all there is.
     CROSS JOIN LATERAL (SELECT o.id, o.seq, o.created_at, o.service, o.intent FROM outrider.outbox o
                          WHERE o.seq >= p.number * 10000 AND o.seq < (p.number + 1) * 10000
                            AND NOT EXISTS (SELECT FROM outrider.queue q WHERE q.id = o.id)
                            AND NOT EXISTS (SELECT FROM outrider.outcome u WHERE u.id = o.id) OFFSET 0) AS o
     WHERE p.difference <> 0 AND (p.queued > 0 OR p.difference <> 0)
     LIMIT most
$$;


REVOKE ALL ON outrider.parked, outrider.anomaly, outrider.page, outrider.tally, outrider.conservation FROM PUBLIC;
REVOKE ALL ON FUNCTION outrider.balance(integer, double precision), outrider.missing(integer) FROM PUBLIC;
GRANT SELECT ON outrider.anomaly, outrider.parked, outrider.conservation TO outrider_reader, outrider_operator, outrider_daemon;
GRANT INSERT, DELETE ON outrider.anomaly, outrider.parked TO outrider_daemon;
GRANT UPDATE ON outrider.parked TO outrider_daemon;
GRANT EXECUTE ON FUNCTION outrider.balance(integer, double precision) TO outrider_operator, outrider_daemon;
GRANT EXECUTE ON FUNCTION outrider.missing(integer) TO outrider_reader, outrider_operator, outrider_daemon;
