-- Close the claims that a daemon which is gone left in a group, once all that may have left has been judged. The rest was
-- never sent and is free again; but a row that evidence told of meanwhile (a receipt of an earlier attempt) leaves the
-- queue, or it would be sent again.
--   $1 grp text, $2 epoch bigint   ours: what was made under it stays
WITH closed AS (
    DELETE FROM outrider.claim c WHERE c.grp = $1 AND c.epoch < $2
    RETURNING c.ids, c.attempts
), heard AS MATERIALIZED (
    SELECT h.id, h.attempt
      FROM closed CROSS JOIN LATERAL unnest(closed.ids, closed.attempts) AS h (id, attempt)
      JOIN outrider.outcome u ON u.id = h.id
)
DELETE FROM outrider.queue q USING heard
 WHERE q.id = heard.id AND q.id = ANY (ARRAY(SELECT id FROM heard)) AND q.attempts = heard.attempt - 1 AND q.state = 'ready'
