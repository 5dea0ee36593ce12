-- Close claims of this daemon that it knows nothing of: their COMMIT came through after the connection was lost, so
-- nothing of them was ever sent. Runs on the connection that claims, so none is in the making. A row that evidence told
-- of meanwhile (a receipt of an earlier attempt) is not free: it leaves the queue, or it would be sent again.
--   $1 owner uuid, $2 fences text[], $3 epochs bigint[]   as in claim.sql: what was made under an older epoch is recovery's
--   $4 open uuid[]                                        the claims it knows
WITH closed AS (
    DELETE FROM outrider.claim c USING unnest($2::text[], $3::bigint[]) AS mine (grp, epoch)
     WHERE c.owner = $1 AND c.grp = mine.grp AND c.epoch = mine.epoch AND c.id <> ALL ($4::uuid[])
    RETURNING c.id, c.ids, c.attempts
), heard AS MATERIALIZED (
    SELECT h.id, h.attempt
      FROM closed CROSS JOIN LATERAL unnest(closed.ids, closed.attempts) AS h (id, attempt)
      JOIN outrider.outcome u ON u.id = h.id
     WHERE (h.id, h.attempt) NOT IN (SELECT f.id, f.attempt FROM outrider.in_flight f
                                      WHERE f.claim NOT IN (SELECT id FROM closed))
)
DELETE FROM outrider.queue q USING heard
 WHERE q.id = heard.id AND q.id = ANY (ARRAY(SELECT id FROM heard)) AND q.attempts = heard.attempt - 1 AND q.state = 'ready'
