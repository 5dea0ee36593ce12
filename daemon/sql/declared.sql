-- Services that any daemon has declared in the last 30 s: a row for another one's service is not ours to refuse.
SELECT DISTINCT unnest(services) AS service FROM outrider.instance WHERE seen_at > now() - interval '30 seconds'
