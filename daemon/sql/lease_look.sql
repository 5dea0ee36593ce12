-- Who speaks for the groups of our settings, and since when nobody does.
--   $1 grps text[]
SELECT grp, owner, until > clock_timestamp() AS held, extract(epoch FROM clock_timestamp() - until)::float8 AS idle_s
  FROM outrider.lease WHERE grp = ANY ($1::text[])
