-- Lanes that any daemon has declared lately, and how many daemons live: a row of another one's lane is not ours to judge.
-- Services stand in instance. Senders stand in the leases of their groups, and a group has the name of its first.
--   $1 seconds double precision   how lately, $2 seconds double precision   how lately one that lives was seen
WITH lately AS MATERIALIZED (
    SELECT i.services, i.groups FROM outrider.instance i WHERE i.seen_at > now() - make_interval(secs => $1)
)
SELECT d.lane,
       (SELECT count(*) FROM outrider.instance i WHERE i.seen_at > now() - make_interval(secs => $2)) AS daemons
  FROM (SELECT unnest(services) FROM lately
        UNION
        SELECT '@' || unnest(groups) FROM lately
        UNION
        SELECT '@' || unnest(l.senders) FROM outrider.lease l
         WHERE l.until > now() - make_interval(secs => $1) OR l.grp IN (SELECT unnest(groups) FROM lately)) AS d (lane)
