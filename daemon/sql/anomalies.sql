-- What ought not to be, for an operator to read; said again, it changes nothing. Returns what is new.
--   $1 kinds text[], $2 ids uuid[], $3 attempts integer[], $4 providers text[], $5 references text[], $6 details text[]
INSERT INTO outrider.anomaly (kind, id, attempt, provider, reference, detail)
SELECT * FROM unnest($1::text[], $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::text[])
    ON CONFLICT DO NOTHING
RETURNING kind, id AS about, reference, detail
