-- Parked no longer: placed, or orphans, which are reported.
--   $1 providers text[], $2 references text[], $3 orphans boolean[]
WITH word AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::boolean[]) AS w (provider, reference, orphan)
), gone AS (
    DELETE FROM outrider.parked p USING word w WHERE p.provider = w.provider AND p.reference = w.reference
    RETURNING p.provider, p.reference, p.id, p.attempt, w.orphan
)
INSERT INTO outrider.anomaly (kind, id, attempt, provider, reference, detail)
SELECT 'orphan', id, attempt, provider, reference,
       CASE WHEN id IS NULL THEN 'a receipt under no token of ours, and no message of that reference'
            ELSE 'a receipt under a token of ours, and no such message' END
  FROM gone WHERE orphan
    ON CONFLICT DO NOTHING
RETURNING kind, id AS about, reference, detail
