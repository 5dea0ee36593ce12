-- References already on record for a sender and a recipient around a moment: none of them is the answer that was lost.
-- Of two identical texts to one number, each stands for one of ours and never for both.
--   $1 sender text, $2 recipient text, $3 since timestamptz, $4 upto timestamptz
SELECT u.reference
  FROM outrider.outcome u
  JOIN outrider.outbox o ON o.id = u.id
 WHERE u.accepted_at BETWEEN $3 AND $4 AND u.sender = $1 AND u.reference IS NOT NULL AND o.recipient = $2
