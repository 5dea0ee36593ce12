-- Groups that are not among $1, and that their holder may have left with something in hand: with open claims, ours by the
-- settings of an earlier run or of nobody seen lately; and leases that ran out, with those whom they name. What a daemon
-- with other settings leaves is its own, whose log can tell, unless one of us is named there.
--   $1 groups text[], $2 owner uuid
-- Returns the group; for whom its lease speaks and what it carries, where only that makes it ours to judge.
SELECT DISTINCT c.grp, NULL::text[] AS senders, NULL::text[] AS services FROM outrider.claim c
 WHERE c.grp <> ALL ($1::text[])
   AND (c.owner = $2 OR NOT EXISTS (SELECT FROM outrider.instance i
                                     WHERE c.grp = ANY (i.groups) AND i.seen_at > now() - interval '10 minutes'))
UNION ALL
SELECT l.grp, l.senders, l.services FROM outrider.lease l
 WHERE l.grp <> ALL ($1::text[]) AND NOT l.dropped AND l.until <= clock_timestamp()
 ORDER BY grp
