-- Receipts, as many as came together: every one appended, final words merged into outcome, doubt ended by any of them.
-- The merge is the lattice of core/receipt.py: heavier rank wins, a tie goes to the alphabetically first word.
--   $1 ids uuid[], $2 attempts integer[], $3 providers text[], $4 references text[], $5 statuses text[],
--   $6 ranks smallint[], $7 codes text[], $8 reasons text[], $9 final boolean[]
-- Returns what ended a doubt: id, attempt.
WITH news AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[],
                         $8::text[], $9::boolean[])
           AS n (id, attempt, provider, reference, status, rank, code, reason, final)
), kept AS (
    INSERT INTO outrider.receipt (id, attempt, provider, reference, status, code, reason)
    SELECT id, attempt, provider, reference, status, code, reason FROM news
), best AS MATERIALIZED (
    SELECT DISTINCT ON (id) * FROM news WHERE id IS NOT NULL ORDER BY id, rank DESC, status, code DESC NULLS LAST
), told AS (
    INSERT INTO outrider.outcome AS o (id, status, rank, attempts, provider, reference, code, reason, accepted_at)
    SELECT b.id, b.status, b.rank, b.attempt, b.provider, b.reference, b.code, b.reason, clock_timestamp()
      FROM best b
     WHERE b.final OR EXISTS (SELECT FROM outrider.queue q WHERE q.id = b.id AND q.state = 'unknown')
    ON CONFLICT (id) DO UPDATE
       SET status = excluded.status, rank = excluded.rank, code = excluded.code, reason = excluded.reason,
           reference = coalesce(o.reference, excluded.reference), provider = coalesce(o.provider, excluded.provider),
           accepted_at = coalesce(o.accepted_at, excluded.accepted_at), updated_at = clock_timestamp()
     WHERE excluded.rank > o.rank
        OR (excluded.rank = o.rank AND (excluded.status < o.status
            OR (excluded.status = o.status AND coalesce(excluded.code, '') > coalesce(o.code, ''))))
), resolved AS (
    DELETE FROM outrider.queue q USING best b
     WHERE q.id = b.id AND q.state = 'unknown'
    RETURNING q.id, b.attempt, q.lane, q.order_key
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM resolved g
     WHERE g.order_key IS NOT NULL AND q.lane = g.lane AND q.order_key = g.order_key AND q.state = 'behind'
       AND q.seq = (SELECT min(e.seq) FROM outrider.queue e
                     WHERE e.lane = g.lane AND e.order_key = g.order_key AND e.id <> ALL ($1::uuid[]))
), story AS (
    INSERT INTO outrider.attempt (id, attempt, kind, provider, outcome, reason, reference)
    SELECT r.id, r.attempt, 'evidence', b.provider, 'accepted', 'a receipt came', b.reference
      FROM resolved r JOIN best b USING (id)
        ON CONFLICT (id, attempt, kind) DO NOTHING
)
SELECT id, attempt FROM resolved
