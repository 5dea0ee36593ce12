-- Free rows that wait behind nobody: their predecessor was settled while their own transaction was still open. And skip
-- a head that has held its successors for longer than it may: they go on, flagged.
--   $1 limit integer, $2 hold double precision   seconds
WITH stuck AS (
    SELECT q.id, h.seq AS held_by
      FROM outrider.queue q
      LEFT JOIN LATERAL (SELECT e.seq, e.due_at, e.state FROM outrider.queue e
                          WHERE e.lane = q.lane AND e.order_key = q.order_key AND e.seq < q.seq
                          ORDER BY e.seq DESC LIMIT 1) AS h ON true
     WHERE q.state = 'behind'
       AND (h.seq IS NULL OR q.due_at < now() - make_interval(secs => $2))
     ORDER BY q.due_at LIMIT $1
)
UPDATE outrider.queue q
   SET state = 'ready', reason = CASE WHEN stuck.held_by IS NULL THEN NULL ELSE 'skipped a predecessor held too long' END
  FROM stuck WHERE q.id = stuck.id AND q.state = 'behind'
RETURNING q.id
