-- Free rows that wait behind nobody: their predecessor was settled while their own transaction was still open. And skip
-- a head that has been in trouble for longer than it may hold its successors: they go on, flagged. A head that merely
-- waits its turn is not skipped, however long the queue is. The flag outlives the queue: it stands in attempt, as number 0,
-- before all tries, where no verdict will ever want to stand.
--   $1 limit integer, $2 hold double precision   seconds
-- Looks at the oldest and the newest rows alone, 4 x $1 of each: all of a long queue, twice a second, would take more time
-- than sending it. A row in between comes to be among the oldest by the time its turn would come.
WITH looked AS MATERIALIZED (
    (SELECT q.id, q.lane, q.order_key, q.seq FROM outrider.queue q
      WHERE q.state = 'behind' ORDER BY q.due_at LIMIT 4 * $1)
    UNION
    (SELECT q.id, q.lane, q.order_key, q.seq FROM outrider.queue q
      WHERE q.state = 'behind' ORDER BY q.due_at DESC LIMIT 4 * $1)
), stuck AS (
    SELECT s.id, h.id AS held_by
      FROM looked s
      LEFT JOIN LATERAL (SELECT e.id FROM outrider.queue e
                          WHERE e.lane = s.lane AND (e.order_key, e.seq) < (s.order_key, s.seq) AND e.order_key >= s.order_key
                          ORDER BY e.order_key DESC, e.seq DESC LIMIT 1) AS h ON true
     WHERE h.id IS NULL
        OR (SELECT min(a.at) FROM outrider.attempt a WHERE a.id = h.id AND a.attempt > 0) < now() - make_interval(secs => $2)
     LIMIT $1
), freed AS (
    UPDATE outrider.queue q
       SET state = 'ready', reason = CASE WHEN stuck.held_by IS NOT NULL THEN 'skipped a predecessor held too long' END
      FROM stuck WHERE q.id = stuck.id AND q.state IS NOT DISTINCT FROM 'behind'
    RETURNING q.id, stuck.held_by
), told AS (
    INSERT INTO outrider.attempt (id, attempt, kind, outcome, reason)
    SELECT id, 0, 'decision', 'skipped ahead', 'ahead of ' || held_by || ', held too long' FROM freed WHERE held_by IS NOT NULL
        ON CONFLICT (id, attempt, kind) DO NOTHING
)
SELECT id FROM freed
