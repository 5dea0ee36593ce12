-- Publish how long what is done is kept, for the intake and for the duties of retention.
--   $1 whats text[], $2 intents text[] ('': all that have no figure of their own), $3 seconds double precision[]
WITH told AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::double precision[]) AS t (what, intent, seconds)
), gone AS (
    DELETE FROM outrider.keeping k WHERE NOT EXISTS (SELECT FROM told t WHERE t.what = k.what AND t.intent = k.intent)
)
INSERT INTO outrider.keeping AS k (what, intent, span)
SELECT what, intent, make_interval(secs => seconds) FROM told
    ON CONFLICT (what, intent) DO UPDATE SET span = excluded.span WHERE k.span <> excluded.span
