-- Daemons that share the work with us: alive, taking part, of the same settings.
--   $1 config_hash text, $2 seconds double precision   how lately seen counts as alive
SELECT id FROM outrider.instance
 WHERE serving AND config_hash = $1 AND seen_at > clock_timestamp() - make_interval(secs => $2)
