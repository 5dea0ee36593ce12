-- Parked receipts that are to be looked at again, and whose they are, if that is known by now: by the id in their token, or
-- by a reference that was given out around then. Pushes their next look out to twice the age, until they are 72 hours old.
--   $1 limit integer
WITH due AS MATERIALIZED (
    SELECT p.provider, p.reference FROM outrider.parked p
     WHERE p.look_at <= now() ORDER BY p.look_at LIMIT $1 FOR UPDATE SKIP LOCKED
), pushed AS (
    UPDATE outrider.parked p
       SET look_at = least(now() + greatest(now() - p.since, interval '1 minute'),
                           greatest(p.since + interval '72 hours', now() + interval '1 minute'))
      FROM due WHERE p.provider = due.provider AND p.reference = due.reference
    RETURNING p.provider, p.reference, p.id, p.attempt, p.since
)
SELECT p.provider, p.reference, p.since, now() - p.since >= interval '72 hours' AS over,
       coalesce(n.id, k.id) AS id, CASE WHEN n.id IS NOT NULL THEN n.attempts ELSE p.attempt END AS attempt
  FROM pushed p
  LEFT JOIN LATERAL (
      SELECT u.id, u.attempts FROM outrider.outcome u
       WHERE u.reference = p.reference AND u.provider = p.provider
         AND u.accepted_at BETWEEN p.since - interval '1 hour' AND p.since + interval '1 hour'
       LIMIT 1
  ) AS n ON true
  LEFT JOIN LATERAL (SELECT p.id WHERE EXISTS (SELECT FROM outrider.queue q WHERE q.id = p.id)
                                    OR EXISTS (SELECT FROM outrider.outcome u WHERE u.id = p.id)) AS k ON true
