-- Take the lease of a group that is free, has run out, or is ours already (migration "several" has the conditions). The
-- claims its last holder left open are the caller's to reconcile before the first claim.
--   $1 grp text, $2 owner uuid, $3 seconds double precision   how long it lasts,
--   $4 seconds double precision                               and how long of that we may begin to write
--   $5 senders text[], $6 services text[], $7 config_hash text,
--   $8 seconds double precision                               how lately seen counts as alive
-- Returns the epoch; who held it last, under which epoch, for how long they have been silent (less than nought: they might
-- have spoken until then), and for whom they spoke. Nothing, when somebody else speaks.
SELECT epoch, last_owner, last_epoch, silent_s, last_senders FROM outrider.take_lease($1, $2, $3, $4, $5, $6, $7, $8)
