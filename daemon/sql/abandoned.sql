-- Groups that are not among $1, and that their holder may have left with something in hand: with open claims, ours by the
-- settings of an earlier run or of nobody seen lately; and leases that ran out. What a daemon with other settings leaves
-- is its own, whose log can tell, unless its lease names one of us.
--   $1 groups text[], $2 owner uuid
-- Returns the group, whether it is ours to judge whomever it names, and whom and what its lease names.
SELECT coalesce(c.grp, l.grp) AS grp, c.grp IS NOT NULL AS ours, coalesce(l.senders, '{}') AS senders,
       coalesce(l.services, '{}') AS services
  FROM (SELECT DISTINCT grp FROM outrider.claim
         WHERE grp <> ALL ($1::text[])
           AND (owner = $2 OR NOT EXISTS (SELECT FROM outrider.instance i
                                           WHERE grp = ANY (i.groups) AND i.seen_at > now() - interval '10 minutes'))) AS c
  FULL JOIN (SELECT * FROM outrider.lease WHERE grp <> ALL ($1::text[])) AS l ON l.grp = c.grp
 WHERE c.grp IS NOT NULL OR (NOT l.dropped AND l.until <= clock_timestamp())
 ORDER BY 1
