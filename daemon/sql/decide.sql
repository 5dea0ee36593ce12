-- Doubt ended by a decision: queued again, or ended without being sent. Guarded: evidence that came meanwhile wins. Takes
-- effect together with the row of attempt that names it: a kill between the two would leave a duplicate unexplained.
--   $1 id uuid, $2 attempt integer, $3 status text ('ready', or the final status), $4 rank smallint, $5 reason text
WITH word AS (
    SELECT q.id, q.lane, q.order_key FROM outrider.queue q
     WHERE q.id = $1 AND q.attempts = $2 AND q.state IS NOT DISTINCT FROM 'unknown' FOR UPDATE
), story AS (
    INSERT INTO outrider.attempt (id, attempt, kind, provider, sender, segments, outcome, reason)
    SELECT word.id, $2, 'decision', a.provider, a.sender, a.segments, CASE $3 WHEN 'ready' THEN 'resend' ELSE $3 END, $5
      FROM word
      LEFT JOIN outrider.attempt a ON a.id = word.id AND a.attempt = $2 AND a.kind = 'exchange'
        ON CONFLICT (id, attempt, kind) DO NOTHING
), again AS (
    UPDATE outrider.queue q SET state = 'ready', due_at = clock_timestamp(), reason = $5
      FROM word WHERE q.id = word.id AND $3 = 'ready'
    RETURNING q.id
), gone AS (
    DELETE FROM outrider.queue q USING word WHERE q.id = word.id AND $3 <> 'ready'
    RETURNING q.id, q.lane, q.order_key
), told AS (
    INSERT INTO outrider.outcome (id, status, rank, attempts, reason)
    SELECT id, $3, $4, $2, $5 FROM gone
        ON CONFLICT (id) DO NOTHING
), freed AS (
    UPDATE outrider.queue q SET state = 'ready', reason = NULL
      FROM (SELECT DISTINCT lane, order_key FROM gone WHERE order_key IS NOT NULL) AS k
     CROSS JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = k.lane AND e.order_key BETWEEN k.order_key AND k.order_key
                            AND e.id NOT IN (SELECT id FROM gone)
                          ORDER BY e.order_key, e.seq LIMIT 1) AS next
     WHERE q.id = next.id AND q.state IS NOT DISTINCT FROM 'behind'
)
SELECT id FROM again UNION ALL SELECT id FROM gone
