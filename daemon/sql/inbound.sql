-- What a person wrote to us; a repeat changes nothing.
--   $1 provider text, $2 reference text, $3 sender text, $4 recipient text, $5 body text, $6 opt_out text, $7 details jsonb
INSERT INTO outrider.inbound (provider, reference, sender, recipient, body, opt_out, details)
VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (provider, reference) DO NOTHING
