-- An acceptance that comes when the row is no longer ours (fenced), or is in doubt: the truth is never thrown away.
-- Not fenced: the lattice makes it safe. Ends doubt; a row that is queued again is taken out unless it is in flight.
--   $1 ids uuid[], $2 attempts integer[], $3 statuses text[], $4 ranks smallint[], $5 segments smallint[],
--   $6 providers text[], $7 senders text[], $8 references text[], $9 accepted timestamptz[]
WITH word AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::smallint[], $5::smallint[], $6::text[], $7::text[],
                         $8::text[], $9::timestamptz[])
           AS w (id, attempt, status, rank, segments, provider, sender, reference, accepted_at)
), door AS (
    -- Writes nothing. What writes to receipt and a replay wait for each other (migrations/0006): an acceptance that is
    -- written while its message is being replayed finds it in the queue.
    INSERT INTO outrider.receipt (provider, reference, status) SELECT '', '', '' WHERE false
), gone AS (
    DELETE FROM outrider.queue q USING word w
     -- Said twice, for a planner that would rather walk the whole queue past the words.
     WHERE q.id = w.id AND q.id = ANY ($1::uuid[])
       AND (q.state <> 'ready' OR (q.id, q.attempts + 1) NOT IN (SELECT f.id, f.attempt FROM outrider.in_flight f))
    RETURNING q.id, q.lane, q.order_key
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM (SELECT DISTINCT lane, order_key FROM gone WHERE order_key IS NOT NULL) AS k
     CROSS JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = k.lane AND e.order_key BETWEEN k.order_key AND k.order_key
                            AND e.id NOT IN (SELECT id FROM gone)
                          ORDER BY e.order_key, e.seq LIMIT 1) AS next
     WHERE q.id = next.id AND q.state IS NOT DISTINCT FROM 'behind'
)
INSERT INTO outrider.outcome AS o (id, status, rank, attempts, segments, provider, sender, reference, accepted_at)
SELECT id, status, rank, attempt, segments, provider, sender, reference, accepted_at FROM word
    ON CONFLICT (id) DO UPDATE
       SET status = CASE WHEN excluded.rank > o.rank THEN excluded.status ELSE o.status END,
           code = CASE WHEN excluded.rank > o.rank THEN NULL ELSE o.code END,
           reason = CASE WHEN excluded.rank > o.rank THEN NULL ELSE o.reason END,
           rank = greatest(excluded.rank, o.rank),
           segments = coalesce(excluded.segments, o.segments), provider = coalesce(excluded.provider, o.provider),
           sender = coalesce(excluded.sender, o.sender), reference = coalesce(excluded.reference, o.reference),
           accepted_at = coalesce(o.accepted_at, excluded.accepted_at)
RETURNING id
