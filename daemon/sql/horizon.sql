-- Who keeps vacuum from its work: the oldest transaction, prepared transaction or replication slot that dead rows of this
-- database are kept for. Everybody may see the process, its application and its transaction number; since when (age_s)
-- only who may read all statistics: null otherwise, and then whoever looks remembers (horizon.py).
SELECT held.who, held.xid::text AS xid, extract(epoch FROM clock_timestamp() - held.since)::float8 AS age_s
  FROM (SELECT format('process %s (%s)', a.pid, coalesce(nullif(a.application_name, ''), 'without a name')), x.xid,
               a.xact_start
          FROM pg_stat_activity a CROSS JOIN LATERAL (VALUES (a.backend_xmin), (a.backend_xid)) AS x (xid)
         WHERE a.pid <> pg_backend_pid()
           AND (a.datid IS NULL OR a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()))
        UNION ALL
        SELECT format('prepared transaction %s', gid), transaction, prepared
          FROM pg_prepared_xacts WHERE database = current_database()
        UNION ALL
        SELECT format('replication slot %s', slot_name), xmin, NULL FROM pg_replication_slots) AS held (who, xid, since)
 WHERE held.xid IS NOT NULL
 ORDER BY age(held.xid) DESC LIMIT 1
