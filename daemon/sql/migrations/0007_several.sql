-- Several daemons on one database: who takes part, who speaks for which senders, and until when (decision 0013).

ALTER TABLE outrider.instance
    ADD COLUMN serving boolean NOT NULL DEFAULT true;  -- takes its share of the groups; false once it drains or is held
-- groups, from here on: those of its settings, whoever holds them. Who holds what stands in lease.

ALTER TABLE outrider.lease
    ADD COLUMN senders  text[] NOT NULL DEFAULT '{}',  -- for whom its holder speaks, and what it carries: no sender and
    ADD COLUMN services text[] NOT NULL DEFAULT '{}',  -- no service stands in the leases of two holders
    ADD COLUMN dropped  boolean NOT NULL DEFAULT false,  -- given back with nothing in hand: then it names nobody any more
    ADD COLUMN taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN speaks   timestamptz NOT NULL DEFAULT clock_timestamp();
    -- speaks: its holder starts no write after this moment, so no debt of its senders is younger than that

GRANT SELECT (serving) ON outrider.instance TO outrider_reader, outrider_operator;

-- Take the lease of a group that is free, has run out, or is the taker's own. A new epoch each time: what the last holder
-- still writes is fenced. Nothing is returned when somebody else speaks: for the group, for one of its senders or services
-- under another group's name (other settings), or when its last holder lives, still wants it, and has other settings.
-- A lease that has run out names them still, until it is given back or taken: what its holder left must be judged first.
CREATE FUNCTION outrider.take_lease(
    wanted text, taker uuid, lasts_s double precision, speaks_s double precision, voices text[], carried text[], hash text,
    alive_s double precision
) RETURNS TABLE (epoch bigint, last_owner uuid, last_epoch bigint, silent_s double precision, last_senders text[])
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last outrider.lease;
BEGIN
    -- One at a time: two that take overlapping groups at the same moment would not see each other.
    PERFORM pg_advisory_xact_lock(hashtext('outrider.take_lease'));
    SELECT * INTO last FROM outrider.lease l WHERE l.grp = wanted FOR UPDATE;
    IF last.owner <> taker
       AND (last.until > clock_timestamp()
            OR EXISTS (SELECT FROM outrider.instance i
                        WHERE i.id = last.owner AND i.serving AND wanted = ANY (i.groups) AND i.config_hash <> hash
                          AND i.seen_at > clock_timestamp() - make_interval(secs => alive_s))) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM outrider.lease l
                WHERE l.grp <> wanted AND l.owner <> taker AND NOT l.dropped
                  AND (l.senders && voices OR l.services && carried)) THEN
        RETURN;
    END IF;
    INSERT INTO outrider.lease AS l (grp, owner, epoch, until, senders, services, speaks)
    VALUES (wanted, taker, 1, clock_timestamp() + make_interval(secs => lasts_s), voices, carried,
            clock_timestamp() + make_interval(secs => speaks_s))
        ON CONFLICT (grp) DO UPDATE
           SET owner = excluded.owner, epoch = l.epoch + 1, until = excluded.until, senders = excluded.senders,
               services = excluded.services, dropped = false, taken_at = clock_timestamp(), speaks = excluded.speaks
    RETURNING l.epoch INTO take_lease.epoch;
    last_owner := last.owner;
    last_epoch := last.epoch;
    silent_s := extract(epoch FROM clock_timestamp() - last.speaks);
    last_senders := last.senders;
    RETURN NEXT;
END
$$;

REVOKE ALL ON FUNCTION
    outrider.take_lease(text, uuid, double precision, double precision, text[], text[], text, double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    outrider.take_lease(text, uuid, double precision, double precision, text[], text[], text, double precision)
    TO outrider_daemon;
