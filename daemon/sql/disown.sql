-- Close claims of this daemon that it knows nothing of: their COMMIT came through after the connection was lost, so
-- nothing of them was ever sent. Runs on the connection that claims, so none is in the making.
--   $1 owner uuid, $2 fences text[], $3 epochs bigint[]   as in claim.sql: what was made under an older epoch is recovery's
--   $4 open uuid[]                                        the claims it knows
DELETE FROM outrider.claim c USING unnest($2::text[], $3::bigint[]) AS mine (grp, epoch)
 WHERE c.owner = $1 AND c.grp = mine.grp AND c.epoch = mine.epoch AND c.id <> ALL ($4::uuid[])
