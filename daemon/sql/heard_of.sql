-- The receipts that are kept of one reference of a provider, as they came.
--   $1 provider text, $2 reference text, $3 id uuid (of its token, or null), $4 since timestamptz
SELECT r.status, r.code, r.reason FROM outrider.receipt r
 WHERE r.provider = $1 AND r.reference = $2 AND r.id IS NULL AND r.at >= $4
UNION ALL
SELECT r.status, r.code, r.reason FROM outrider.receipt r
 WHERE r.provider = $1 AND r.reference = $2 AND r.id = $3 AND r.at >= $4
