-- What a daemon that is gone left in flight: for each open claim of a group not made under our present epoch, the rows
-- still in flight with what is needed to judge them; died: in how many deaths of a daemon each was in the works before.
--   $1 grp text, $2 epoch bigint
SELECT c.id AS claim, c.owner, c.epoch, c.taken_at, f.id, f.attempt,
       q.id IS NOT NULL AND q.attempts = f.attempt - 1 AND q.state = 'ready' AS in_flight,
       o.body, o.template, o.variables::text AS variables,
       (SELECT count(*) FROM outrider.attempt a
         WHERE a.id = f.id AND a.attempt < f.attempt AND a.kind = 'exchange' AND a.reason LIKE '%the daemon died%') AS died
  FROM outrider.claim c
  JOIN outrider.in_flight f ON f.claim = c.id
  LEFT JOIN outrider.queue q ON q.id = f.id
  LEFT JOIN outrider.outbox o ON o.id = q.id
 WHERE c.grp = $1 AND c.epoch < $2
