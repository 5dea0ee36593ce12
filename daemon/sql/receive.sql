-- Receipts, as many as came together: every one appended, final words merged into outcome, doubt ended by any of them.
-- The merge is the lattice of core/receipt.py: heavier rank wins, a tie goes to the alphabetically first word.
--   $1 ids uuid[], $2 attempts integer[], $3 providers text[], $4 references text[], $5 statuses text[],
--   $6 ranks smallint[], $7 codes text[], $8 reasons text[], $9 final boolean[]
-- What names no message we know is parked (parked.sql); what contradicts what was known is reported in anomaly.
-- Returns what it took out of the queue (id, attempt), how long each new word took since acceptance (provider, delay_s), and
-- what was new in anomaly (kind, about, reference, detail).
WITH news AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[],
                         $8::text[], $9::boolean[])
           AS n (id, attempt, provider, reference, status, rank, code, reason, final)
), kept AS (
    INSERT INTO outrider.receipt (id, attempt, provider, reference, status, code, reason)
    SELECT id, attempt, provider, reference, status, code, reason FROM news
), met AS MATERIALIZED (
    -- A message is in queue or in outcome, at any moment: what is in neither is none of ours, or not yet.
    SELECT n.*, q.id IS NOT NULL AS queued, q.state, q.attempts AS back, q.id IS NOT NULL OR u.id IS NOT NULL AS known,
           u.status AS stood, u.rank AS stood_rank, u.reference AS stood_reference, u.attempts = n.attempt AS same
      FROM news n
      LEFT JOIN outrider.queue q ON q.id = n.id
      -- LATERAL and OFFSET: one look for each, where a planner that is told of a tiny table would walk through all of it.
      LEFT JOIN LATERAL (SELECT * FROM outrider.outcome u WHERE u.id = n.id OFFSET 0) AS u ON true
), parked AS (
    INSERT INTO outrider.parked (provider, reference, id, attempt)
    SELECT DISTINCT ON (provider, reference) provider, reference, id, attempt FROM met WHERE NOT known
     ORDER BY provider, reference
        ON CONFLICT (provider, reference) DO NOTHING
), best AS MATERIALIZED (
    SELECT DISTINCT ON (n.id) n.*
      FROM met n
     WHERE n.known
       -- That it arrived (rank 50 and more) is true whatever we did since. Less than that says nothing about a later
       -- attempt: an old receipt, told again, must not end a message that was sent again or replayed.
       AND CASE WHEN n.rank >= 50 THEN true
                WHEN NOT n.queued THEN n.final
                WHEN n.state = 'unknown' THEN n.attempt >= n.back
                ELSE n.final AND n.attempt > n.back END
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
    RETURNING q.id, b.attempt, b.provider, b.reference, q.lane, q.order_key, b.attempt > q.attempts AS unsent
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
), judged AS (
    SELECT m.*, same AND (stood_rank >= 50 AND fails OR stood_rank = 40 AND rank >= 50) AS turned,
           bool_or(rank >= 50) OVER attempt AND bool_or(fails) OVER attempt AS torn,
           reference <> CASE WHEN same AND stood_reference IS NOT NULL THEN stood_reference
                             ELSE min(reference) OVER attempt END AS doubled
      FROM (SELECT *, rank = 40 OR final AND rank < 10 AS fails FROM met WHERE known) AS m
    WINDOW attempt AS (PARTITION BY id, attempt)
), odd AS (
    INSERT INTO outrider.anomaly (kind, id, attempt, provider, reference, detail)
    (SELECT DISTINCT ON (id, reference) 'contradiction', id, attempt, provider, reference,
            CASE WHEN turned THEN stood || ', then ' || status ELSE 'delivered and not delivered, told at once' END
       FROM judged WHERE turned OR torn ORDER BY id, reference, turned DESC)
    UNION ALL
    (SELECT DISTINCT ON (id, reference) 'two_references', id, attempt, provider, reference,
            'one attempt, two messages of its provider' || coalesce('; the other: ' || nullif(stood_reference, reference), '')
       FROM judged WHERE doubled ORDER BY id, reference)
    UNION ALL
    SELECT 'unsent', id, attempt, provider, reference, 'a receipt for an attempt we have no record of'
      FROM resolved WHERE unsent
        ON CONFLICT DO NOTHING
    RETURNING kind, id, reference, detail
)
SELECT id, attempt, NULL AS provider, NULL::float8 AS delay_s, NULL AS kind, NULL::uuid AS about, NULL AS reference,
       NULL AS detail
  FROM resolved
UNION ALL
SELECT NULL, NULL, provider, delay_s, NULL, NULL, NULL, NULL FROM told WHERE delay_s IS NOT NULL
UNION ALL
SELECT NULL, NULL, NULL, NULL, kind, id, reference, detail FROM odd
