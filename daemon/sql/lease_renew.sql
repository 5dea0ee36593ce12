-- Renew what is held. A group that is missing from the answer has been lost.
--   $1 owner uuid, $2 grps text[], $3 epochs bigint[], $4 seconds double precision, $5 seconds double precision
--   as in lease_take.sql
UPDATE outrider.lease l
   SET until = clock_timestamp() + make_interval(secs => $4), speaks = clock_timestamp() + make_interval(secs => $5)
  FROM unnest($2::text[], $3::bigint[]) AS mine (grp, epoch)
 WHERE l.grp = mine.grp AND l.owner = $1 AND l.epoch = mine.epoch
RETURNING l.grp
