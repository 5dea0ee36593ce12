-- Receipts, as many as came together: every one appended, final words merged into outcome, doubt ended by any of them.
-- The merge is the lattice of core/receipt.py: heavier rank wins, a tie goes to the alphabetically first word.
--   $1 ids uuid[], $2 attempts integer[], $3 providers text[], $4 references text[], $5 statuses text[],
--   $6 ranks smallint[], $7 codes text[], $8 reasons text[], $9 final boolean[]
-- Returns what it took out of the queue (id, attempt), and how long each new word took since acceptance (provider,
-- delay_s).
WITH news AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[],
                         $8::text[], $9::boolean[])
           AS n (id, attempt, provider, reference, status, rank, code, reason, final)
), kept AS (
    INSERT INTO outrider.receipt (id, attempt, provider, reference, status, code, reason)
    SELECT id, attempt, provider, reference, status, code, reason FROM news
), best AS MATERIALIZED (
    SELECT DISTINCT ON (n.id) n.*
      FROM news n LEFT JOIN outrider.queue q ON q.id = n.id
     WHERE n.id IS NOT NULL
       -- That it arrived (rank 50 and more) is true whatever we did since. Less than that says nothing about a later
       -- attempt: an old receipt, told again, must not end a message that was sent again or replayed.
       AND CASE WHEN n.rank >= 50 THEN true
                WHEN q.id IS NULL THEN n.final
                WHEN q.state = 'unknown' THEN n.attempt >= q.attempts
                ELSE n.final AND n.attempt > q.attempts END
     ORDER BY n.id, n.rank >= 50 DESC, n.attempt DESC, n.rank DESC, n.status COLLATE "C",
              coalesce(n.code, '') COLLATE "C" DESC
), told AS (
    INSERT INTO outrider.outcome AS o (id, status, rank, attempts, provider, reference, code, reason, accepted_at)
    SELECT id, status, rank, coalesce(attempt, 0), provider, reference, code, reason, clock_timestamp() FROM best
    ON CONFLICT (id) DO UPDATE
       SET status = excluded.status, rank = excluded.rank, code = excluded.code, reason = excluded.reason,
           reference = coalesce(o.reference, excluded.reference), provider = coalesce(o.provider, excluded.provider),
           accepted_at = coalesce(o.accepted_at, excluded.accepted_at), updated_at = clock_timestamp()
     WHERE (excluded.rank >= 50 OR excluded.attempts >= o.attempts)
       AND (excluded.rank > o.rank
            OR (excluded.rank = o.rank
                AND (excluded.status COLLATE "C" < o.status
                     OR (excluded.status = o.status
                         AND coalesce(excluded.code, '') COLLATE "C" > coalesce(o.code, '')))))
    -- Without segments the receipt was first, and the moment of acceptance is not known.
    RETURNING o.provider, CASE WHEN o.segments IS NOT NULL
                               THEN extract(epoch FROM clock_timestamp() - o.accepted_at)::float8 END AS delay_s
), resolved AS (
    -- What is in flight stays until its own verdict is written.
    DELETE FROM outrider.queue q USING best b
     WHERE q.id = b.id AND q.id = ANY ($1::uuid[])  -- said twice: see late.sql
       AND (q.state <> 'ready' OR (q.id, q.attempts + 1) NOT IN (SELECT f.id, f.attempt FROM outrider.in_flight f))
    RETURNING q.id, b.attempt, b.provider, b.reference, q.lane, q.order_key
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM (SELECT DISTINCT lane, order_key FROM resolved WHERE order_key IS NOT NULL) AS k
     CROSS JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = k.lane AND e.order_key BETWEEN k.order_key AND k.order_key
                            AND e.id NOT IN (SELECT id FROM resolved)
                          ORDER BY e.order_key, e.seq LIMIT 1) AS next
     WHERE q.id = next.id AND q.state IS NOT DISTINCT FROM 'behind'
), story AS (
    INSERT INTO outrider.attempt (id, attempt, kind, provider, outcome, reason, reference)
    SELECT id, attempt, 'evidence', provider, 'accepted', 'a receipt came', reference FROM resolved
        ON CONFLICT (id, attempt, kind) DO NOTHING
)
SELECT id, attempt, NULL AS provider, NULL::float8 AS delay_s FROM resolved
UNION ALL
SELECT NULL, NULL, provider, delay_s FROM told WHERE delay_s IS NOT NULL
