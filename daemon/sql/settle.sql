-- The last words, written back: out of the queue, into outcome, successors of an order_key freed, emptied claims closed.
-- Safe to run again after a lost COMMIT: whatever it did is not found the second time. Returns how many it settled, and
-- their ids when some are missing (fenced, or settled before): nearly never, and an id a row cost the daemon 1 µs each.
-- Then where freed rows stand (lane, level, due_at).
--   $1 owner uuid, $2 fences text[], $3 epochs bigint[]            as in claim.sql
--   $4 words text       what is settled: a JSON list of ledger.Word
--   $5 closed uuid[]    claims with nothing left in hand
--   $6 many integer     words in $4
WITH fence AS MATERIALIZED (
    SELECT l.grp
      FROM unnest($2::text[], $3::bigint[]) AS mine (grp, epoch)
      JOIN outrider.lease l ON l.grp = mine.grp
     WHERE l.owner = $1 AND l.epoch = mine.epoch
       FOR SHARE OF l
), word AS MATERIALIZED (
    SELECT w.*, CASE WHEN w.status IN ('accepted', 'sent') THEN to_timestamp(w.at) END AS accepted_at
      FROM json_to_recordset($4::text::json)
           AS w (grp text, id uuid, attempt integer, status text, rank smallint, segments smallint, provider text,
                 sender text, reference text, code text, reason text, at double precision)
      JOIN fence f ON f.grp = w.grp
), gone AS (
    DELETE FROM outrider.queue q USING word w
     WHERE q.id = w.id AND q.attempts = w.attempt - 1
    RETURNING w.*, q.lane, q.order_key
), told AS (
    INSERT INTO outrider.outcome AS o (id, status, rank, attempts, segments, provider, sender, reference, code, reason,
                                       accepted_at)
    SELECT id, status, rank, attempt, segments, provider, sender, reference, code, reason, accepted_at FROM gone
    -- A receipt may have come before our own answer: the heavier word stays, the facts of the exchange are filled in.
    ON CONFLICT (id) DO UPDATE
       SET (status, rank) = (
               SELECT CASE WHEN excluded.rank > h.rank THEN excluded.status ELSE h.status END,
                      greatest(excluded.rank, h.rank)
                      -- That an earlier attempt was sent may stand in its receipts alone, and they will not speak on.
                 FROM (SELECT CASE WHEN s.heard THEN 'sent' ELSE o.status END AS status,
                              CASE WHEN s.heard THEN 30 ELSE o.rank END AS rank
                         FROM (SELECT o.status = 'accepted'
                                      AND EXISTS (SELECT FROM outrider.receipt r
                                                   WHERE r.id = o.id AND r.status = 'sent' AND r.attempt >= o.attempts)
                                      AS heard) AS s) AS h),
           -- Our own ending says nothing against a provider's word on an earlier attempt: that one goes on speaking.
           attempts = CASE WHEN excluded.rank < 10 AND o.rank >= 10 THEN o.attempts ELSE excluded.attempts END,
           segments = coalesce(excluded.segments, o.segments), provider = coalesce(excluded.provider, o.provider),
           sender = coalesce(excluded.sender, o.sender), reference = coalesce(excluded.reference, o.reference),
           code = CASE WHEN excluded.rank > o.rank THEN excluded.code ELSE o.code END,
           reason = CASE WHEN excluded.rank > o.rank THEN excluded.reason ELSE o.reason END,
           accepted_at = coalesce(excluded.accepted_at, o.accepted_at)
), freed AS (
    -- BETWEEN and IS NOT DISTINCT FROM, here and elsewhere, keep the planner on one index whatever it believes: = would
    -- open to it the index of all that is behind, and that of all row numbers.
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM (SELECT DISTINCT lane, order_key FROM gone WHERE order_key IS NOT NULL) AS k
     CROSS JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = k.lane AND e.order_key BETWEEN k.order_key AND k.order_key
                            AND e.id NOT IN (SELECT id FROM gone)
                          ORDER BY e.order_key, e.seq LIMIT 1) AS next
     WHERE q.id = next.id AND q.state IS NOT DISTINCT FROM 'behind'
    RETURNING q.lane, q.level, q.due_at
), closed AS (
    -- Fenced too: what a lost lease left open is for its next holder to judge.
    DELETE FROM outrider.claim c USING fence f WHERE c.id = ANY ($5::uuid[]) AND c.owner = $1 AND c.grp = f.grp
)
SELECT count(*) AS settled, CASE WHEN count(*) < $6 THEN array_agg(id) END AS ids, NULL AS lane, NULL::smallint AS level,
       NULL::timestamptz AS due_at
  FROM gone
UNION ALL
SELECT NULL, NULL, lane, level, due_at FROM freed
