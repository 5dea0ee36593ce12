-- Which of these references are on record: each stands for one of ours, and is not the answer that was lost. Of two identical
-- texts to one number, each stands for one of ours and never for both.
--   $1 references text[]
SELECT named.reference
  FROM unnest($1::text[]) AS named (reference)
 CROSS JOIN LATERAL (SELECT FROM outrider.outcome u WHERE u.reference = named.reference LIMIT 1) AS one
