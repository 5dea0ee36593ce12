-- Messages a provider has, of which it has said nothing for an hour, the quietest first. Pushes each one's next look out at
-- once, so that no other daemon takes it.
--   $1 limit integer
WITH due AS MATERIALIZED (
    SELECT u.id FROM outrider.outcome u
     WHERE u.status IN ('accepted', 'sent') AND coalesce(u.quiet_from, u.accepted_at) < now() - interval '1 hour'
     ORDER BY coalesce(u.quiet_from, u.accepted_at) LIMIT $1 FOR UPDATE SKIP LOCKED
), pushed AS (
    -- No join: nothing but one look into the index for each.
    UPDATE outrider.outcome u SET quiet_from = clock_timestamp() WHERE u.id = ANY (ARRAY(SELECT id FROM due))
    RETURNING u.id, u.attempts, u.provider, u.sender, u.reference, u.segments, u.accepted_at
)
SELECT p.*, EXISTS (SELECT FROM outrider.receipt r
                     WHERE r.id = p.id AND r.status = 'sent' AND r.attempt >= p.attempts) AS handed_on
  FROM pushed p
