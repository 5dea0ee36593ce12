-- Numbers alone, of rows still waiting: cheap enough to read a million of them ahead.
--   $1 after bigint, $2 upto bigint
SELECT q.id, q.attempts, q.lane, o.recipient, o.service
  FROM outrider.queue q JOIN outrider.outbox o ON o.id = q.id
 WHERE q.seq > $1 AND q.seq <= $2 AND q.state IN ('ready', 'behind')
