-- The earliest due row of a lane and level that lies before its mark and is not in hand: it was committed late, or came
-- back. Null when there is none; otherwise the mark goes back to it.
--   $1 lanes   text[]   $2 levels  smallint[]   $3 marks  timestamptz[]   $4 held  uuid[]
SELECT wish.lane, wish.level, late.due_at
  FROM unnest($1::text[], $2::smallint[], $3::timestamptz[]) AS wish (lane, level, mark)
 CROSS JOIN LATERAL (
    SELECT q.due_at FROM outrider.queue q
     WHERE q.state = 'ready' AND q.lane = wish.lane AND q.level = wish.level AND q.due_at < wish.mark
       AND q.id <> ALL ($4::uuid[])
     ORDER BY q.due_at, q.seq LIMIT 1
 ) AS late
