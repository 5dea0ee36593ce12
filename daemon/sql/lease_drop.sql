-- Give leases back at once, so that others need not wait for them to run out. Nothing of them is in hand.
--   $1 owner uuid, $2 grps text[], $3 epochs bigint[]
UPDATE outrider.lease l SET until = clock_timestamp(), speaks = least(l.speaks, clock_timestamp()), dropped = true
  FROM unnest($2::text[], $3::bigint[]) AS mine (grp, epoch)
 WHERE l.grp = mine.grp AND l.owner = $1 AND l.epoch = mine.epoch
