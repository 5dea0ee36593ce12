-- Groups with open claims that are not among $1.
--   $1 groups text[]
SELECT DISTINCT grp FROM outrider.claim WHERE grp <> ALL ($1::text[]) ORDER BY grp
