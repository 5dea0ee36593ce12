-- Every signal of a transaction older than $2 has taken effect here.
--   $1 instance uuid, $2 xid text
UPDATE outrider.instance SET acked = $2::text::xid8, seen_at = clock_timestamp() WHERE id = $1
