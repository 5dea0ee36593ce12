-- Services that any daemon has declared lately: a row for another one's service is not ours to refuse.
--   $1 seconds double precision   how lately
SELECT DISTINCT unnest(services) AS service FROM outrider.instance WHERE seen_at > now() - make_interval(secs => $1)
