-- Groups with open claims that are not among $1: ours by the settings of an earlier run, or of nobody seen lately. Those
-- of a daemon with other settings are its own, whose log can tell.
--   $1 groups text[], $2 owner uuid
SELECT DISTINCT c.grp FROM outrider.claim c
 WHERE c.grp <> ALL ($1::text[])
   AND (c.owner = $2 OR NOT EXISTS (SELECT FROM outrider.instance i
                                     WHERE c.grp = ANY (i.groups) AND i.seen_at > now() - interval '10 minutes'))
 ORDER BY c.grp
