-- The lanes that have rows in a state, by skipping from one to the next: see lanes.sql.
--   $1 state text   suspect or unknown
WITH RECURSIVE lane AS (
    (SELECT q.lane FROM outrider.queue q
      WHERE q.state IN ('suspect', 'unknown') AND q.state = $1 ORDER BY q.lane LIMIT 1)
    UNION ALL
    SELECT (SELECT q.lane FROM outrider.queue q
             WHERE q.state IN ('suspect', 'unknown') AND q.state = $1 AND q.lane > lane.lane ORDER BY q.lane LIMIT 1)
      FROM lane WHERE lane.lane IS NOT NULL
)
SELECT lane FROM lane WHERE lane IS NOT NULL LIMIT 10000
