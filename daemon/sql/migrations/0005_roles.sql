-- Roles: one for each way of meeting Outrider, none can log in by itself. Grant them to your own users:
--   GRANT outrider_producer TO app;
-- A role belongs to the whole server, so another database of it may have made them already.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['outrider_producer', 'outrider_operator', 'outrider_reader', 'outrider_daemon'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of this server was quicker
            END;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON SCHEMA outrider FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA outrider FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outrider FROM PUBLIC;
GRANT USAGE ON SCHEMA outrider TO outrider_producer, outrider_operator, outrider_reader, outrider_daemon;

-- Producers: their own columns, and id, so that RETURNING works. seq and created_at are not theirs.
GRANT INSERT (id, tenant, recipient, channel, service, sender, body, template, variables, subject, content, media, intent,
              send_at, validity, expires_at, idempotency_key, order_key, tags, on_ambiguous, fallback, callback_url,
              traceparent) ON outrider.outbox TO outrider_producer;
GRANT SELECT (id) ON outrider.outbox TO outrider_producer;
GRANT EXECUTE ON FUNCTION outrider.new_id() TO outrider_producer, outrider_daemon;

GRANT EXECUTE ON FUNCTION outrider.cancel(uuid), outrider.pause(text, text), outrider.resume(text),
    outrider.opt_out(text, text, text), outrider.replay(uuid) TO outrider_operator;

GRANT SELECT ON outrider.message, outrider.backlog, outrider.dead_letter, outrider.pause TO outrider_reader, outrider_operator;
GRANT SELECT (id, host, pid, version, started_at, seen_at, config_hash, services, groups) ON outrider.instance
    TO outrider_reader, outrider_operator;
GRANT SELECT ON outrider.lease TO outrider_reader, outrider_operator;
GRANT EXECUTE ON FUNCTION outrider.why(uuid), outrider.mask(text) TO outrider_reader, outrider_operator;

-- The daemon: what its statements touch, and no DDL.
GRANT SELECT ON ALL TABLES IN SCHEMA outrider TO outrider_daemon;
GRANT INSERT ON outrider.queue, outrider.claim, outrider.outcome, outrider.attempt, outrider.receipt, outrider.inbound,
    outrider.lease, outrider.instance, outrider.home TO outrider_daemon;
GRANT UPDATE ON outrider.queue, outrider.claim, outrider.outcome, outrider.lease, outrider.instance, outrider.home,
    outrider.intent, outrider.receipt TO outrider_daemon;
GRANT DELETE ON outrider.queue, outrider.claim, outrider.signal, outrider.idempotency, outrider.instance TO outrider_daemon;
GRANT EXECUTE ON FUNCTION outrider.make_weeks(integer), outrider.opt_out(text, text, text), outrider.why(uuid),
    outrider.mask(text), outrider.first_id(timestamptz),
    outrider.useless_at(timestamptz, timestamptz, interval, timestamptz) TO outrider_daemon;

-- Whoever confirms that a copied database may send (outrider resume --sole-sender).
GRANT SELECT (one, system_identifier, database_oid, timeline, confirmed_at),
      UPDATE (system_identifier, database_oid, timeline, confirmed_at) ON outrider.home TO outrider_operator;
