-- Rows that come back: to be tried again later ('ready'), or with nobody knowing whether they were sent ('unknown'). One
-- of which a receipt has told meanwhile does not come back: it is out of the queue, and stands where the receipt put it.
-- Returns the ids it changed. Safe to run again.
--   $1 owner uuid, $2 fences text[], $3 epochs bigint[]            as in claim.sql
--   $4 grps text[], $5 ids uuid[], $6 attempts integer[]           the attempt that came back
--   $7 states text[], $8 due timestamptz[], $9 charges smallint[] (1: charged to its patience), $10 reasons text[]
--   $11 closed uuid[]
WITH fence AS MATERIALIZED (
    SELECT l.grp
      FROM unnest($2::text[], $3::bigint[]) AS mine (grp, epoch)
      JOIN outrider.lease l ON l.grp = mine.grp
     WHERE l.owner = $1 AND l.epoch = mine.epoch
       FOR SHARE OF l
), word AS MATERIALIZED (
    SELECT w.*, EXISTS (SELECT FROM outrider.outcome u WHERE u.id = w.id) AS heard
      FROM unnest($4::text[], $5::uuid[], $6::integer[], $7::text[], $8::timestamptz[], $9::smallint[], $10::text[])
           AS w (grp, id, attempt, state, due_at, charge, reason)
      JOIN fence f ON f.grp = w.grp
), back AS (
    UPDATE outrider.queue q
       SET state = w.state, due_at = w.due_at, attempts = w.attempt, spent = least(q.spent::integer + w.charge, 32767),
           reason = w.reason
      FROM word w
     WHERE q.id = w.id AND q.attempts = w.attempt - 1 AND NOT w.heard
    RETURNING q.id
), gone AS (
    DELETE FROM outrider.queue q USING word w
     WHERE q.id = w.id AND q.attempts = w.attempt - 1 AND w.heard
    RETURNING q.id, q.lane, q.order_key
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM (SELECT DISTINCT lane, order_key FROM gone WHERE order_key IS NOT NULL) AS k
     CROSS JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = k.lane AND e.order_key BETWEEN k.order_key AND k.order_key
                            AND e.id NOT IN (SELECT id FROM gone)
                          ORDER BY e.order_key, e.seq LIMIT 1) AS next
     WHERE q.id = next.id AND q.state IS NOT DISTINCT FROM 'behind'
), closed AS (
    DELETE FROM outrider.claim c USING fence f WHERE c.id = ANY ($11::uuid[]) AND c.owner = $1 AND c.grp = f.grp
)
SELECT id FROM back UNION ALL SELECT id FROM gone
