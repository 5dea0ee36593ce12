-- Signals of transactions that may not have been visible at the last look, and the oldest transaction still running now.
--   $1 xid text   the oldest transaction running at the last look
-- One row at least: the horizon, with or without a signal.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon, s.seq, s.kind, s.id, s.what
  FROM (SELECT) AS always
  LEFT JOIN outrider.signal s ON s.xid >= $1::text::xid8
 ORDER BY s.seq
