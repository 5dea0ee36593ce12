-- What did not end in a plain acceptance, for the record. Append-only; a repeat changes nothing.
--   $1 ids uuid[], $2 attempts integer[], $3 kinds text[], $4 at timestamptz[], $5 providers text[], $6 senders text[],
--   $7 segments smallint[], $8 outcomes text[], $9 codes text[], $10 reasons text[], $11 references text[]
INSERT INTO outrider.attempt (id, attempt, kind, at, provider, sender, segments, outcome, code, reason, reference)
SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::smallint[],
                     $8::text[], $9::text[], $10::text[], $11::text[])
    ON CONFLICT (id, attempt, kind) DO NOTHING
