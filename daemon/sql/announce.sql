-- Describe this daemon to the others.
--   $1 id uuid, $2 host text, $3 pid integer, $4 version text, $5 started timestamptz, $6 config_hash text,
--   $7 services text[], $8 groups text[]   of its settings, $9 fences text[], $10 epochs bigint[]   as in claim.sql,
--   $11 serving boolean   whether it takes its share of the groups
-- Returns the time here, and whether claims of an earlier run of this daemon are still to be reconciled.
INSERT INTO outrider.instance (id, host, pid, version, started_at, seen_at, config_hash, services, groups,
                               serving)
VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6, $7, $8, $11)
    ON CONFLICT (id) DO UPDATE
       SET host = excluded.host, pid = excluded.pid, version = excluded.version, started_at = excluded.started_at,
           seen_at = excluded.seen_at, config_hash = excluded.config_hash, services = excluded.services,
           groups = excluded.groups, serving = excluded.serving
RETURNING extract(epoch FROM clock_timestamp())::float8 AS now,
          EXISTS (SELECT FROM outrider.claim c
                   WHERE c.owner = $1
                     AND NOT EXISTS (SELECT FROM unnest($9::text[], $10::bigint[]) AS mine (grp, epoch)
                                      WHERE mine.grp = c.grp AND mine.epoch = c.epoch)) AS unreconciled
