-- Take the lease of a group that is free, expired, or ours already. A new epoch each time: what the last holder still
-- writes is fenced. The claims it left open are the caller's to reconcile before the first claim.
--   $1 grp text, $2 owner uuid, $3 seconds double precision
INSERT INTO outrider.lease AS l (grp, owner, epoch, until)
VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
    ON CONFLICT (grp) DO UPDATE
       SET owner = excluded.owner, epoch = l.epoch + 1, until = excluded.until
     WHERE l.owner = excluded.owner OR l.until < clock_timestamp()
RETURNING epoch
