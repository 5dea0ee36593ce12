"""Every statement of the command line, each with a line that says what it is for."""

from __future__ import annotations

# One row, as an application inserts it. What is not told keeps the column's meaning of NULL.
SEND = """
INSERT INTO outrider.outbox (recipient, body, service, intent, sender, idempotency_key, validity, send_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING id
"""

# Where one message is.
MESSAGE = "SELECT * FROM outrider.message WHERE id = $1"

# Whose reference this is: an index of outcome has it.
BY_REFERENCE = "SELECT id FROM outrider.message WHERE reference = $1 LIMIT 1"

# Its story, oldest first.
WHY = "SELECT at, what, detail FROM outrider.why($1)"

# Ended badly, newest first.
#   $1 to $9 cli.dead.Filter, $10 limit
DEAD = """
SELECT ended_at AS updated_at, id, of_tenant AS tenant, of_service AS service, of_intent AS intent, ended AS status,
       code, why AS reason, attempts, carrier AS provider, sender, recipient
  FROM outrider.dead_letters($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""

# What a replay would answer: for those that fit ($1 to $9 cli.dead.Filter, $10 doubtful), for those named.
PREVIEW = "SELECT message, answer, segments FROM outrider.replay_preview($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
ANSWERS = """
SELECT a.message, a.answer, a.segments
  FROM unnest($1::uuid[]) WITH ORDINALITY AS asked (id, place)
  JOIN outrider.replay_answers($1, $2) a ON a.message = asked.id ORDER BY place
"""

# Send them again, and say of each what came of it.
#   $1 messages uuid[], $2 per second, $3 starting, $4 doubtful
REPLAY = "SELECT message, answer, segments, due_at FROM outrider.replay($1::uuid[], $2, starting => $3, doubtful => $4)"

# Cancel them; an id nobody inserted is unknown, not too late.
CANCEL = """
SELECT id, CASE WHEN EXISTS (SELECT FROM outrider.message m WHERE m.id = asked.id)
                THEN outrider.cancel(id) ELSE 'unknown' END AS result
  FROM unnest($1::uuid[]) WITH ORDINALITY AS asked (id, place) ORDER BY place
"""

PAUSE = "SELECT outrider.pause($1, $2)"
RESUME = "SELECT outrider.resume($1)"
PAUSES = "SELECT what, at, reason FROM outrider.pause ORDER BY at"

# This database is at home where it now is (DESIGN 5.17): a held daemon goes on. The first daemon writes the row. The
# timeline is that of the present WAL, as identity.py asks for it: the control file's is older until a checkpoint.
SOLE_SENDER = """
UPDATE outrider.home
   SET system_identifier = s.system_identifier, database_oid = d.oid,
       timeline = ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer,
       confirmed_at = clock_timestamp()
  FROM pg_control_system() s, pg_database d
 WHERE d.datname = current_database()
RETURNING confirmed_at
"""

# What waits. The view counts the queue: 0.2 s for a million rows.
BACKLOG = "SELECT lane, level, state, messages, oldest_due FROM outrider.backlog ORDER BY lane, level, state"
IN_FLIGHT = """
SELECT count(*) FROM outrider.in_flight f
  JOIN outrider.queue q ON q.id = f.id AND q.attempts + 1 = f.attempt AND q.state = 'ready'
"""

# What became of messages within the last hour; ids are time-ordered, so weeks long past are not read.
#   $1 the smallest id of a day ago
LAST_HOUR = """
SELECT o.service, u.status, count(*) AS messages
  FROM outrider.outcome u JOIN outrider.outbox o ON o.id = u.id
 WHERE u.id >= $1 AND o.id >= $1 AND u.updated_at > now() - interval '1 hour'
 GROUP BY 1, 2 ORDER BY 1, 3 DESC
"""

# Daemons seen lately, and the groups each holds.
INSTANCES = """
SELECT i.id, i.host, i.pid, i.version, i.started_at, i.seen_at, i.config_hash, i.serving, i.services,
       coalesce(array_agg(l.grp ORDER BY l.grp) FILTER (WHERE l.until > now()), '{}') AS holds
  FROM outrider.instance i LEFT JOIN outrider.lease l ON l.owner = i.id
 WHERE i.seen_at > now() - interval '10 minutes'
 GROUP BY i.id ORDER BY i.host, i.pid
"""

# The books of the last two days, and of any day with a difference; as of a look at most a minute ago.
BOOKS = """
SELECT day, intent, inserted, settled, open, difference FROM outrider.conservation
 WHERE day > (now() AT TIME ZONE 'UTC')::date - 2 OR difference <> 0
 ORDER BY difference <> 0 DESC, day DESC, intent
"""

# What ought not to be, of the last day; and receipts whose message nobody knows yet.
ANOMALIES = """
SELECT kind, count(*) AS messages, max(at) AS latest, (array_agg(detail ORDER BY at DESC))[1] AS detail
  FROM outrider.anomaly WHERE at > now() - interval '1 day' GROUP BY kind ORDER BY kind
"""
PARKED = "SELECT count(*) FROM outrider.parked"

# Who speaks for which group of senders, under which epoch, since when, for how long yet. Those nobody holds too, if a
# daemon seen lately has them in its settings.
GROUPS = """
SELECT l.grp, CASE WHEN l.until > clock_timestamp() THEN l.owner END AS owner, i.host, i.pid, l.epoch, l.taken_at,
       greatest(extract(epoch FROM l.until - clock_timestamp()), 0)::float8 AS left_s, l.senders
  FROM outrider.lease l LEFT JOIN outrider.instance i ON i.id = l.owner AND l.until > clock_timestamp()
 WHERE l.until > clock_timestamp()
    OR EXISTS (SELECT FROM outrider.instance seen
                WHERE l.grp = ANY (seen.groups) AND seen.seen_at > now() - interval '10 minutes')
 ORDER BY l.grp
"""

# Our clock against the database's.
CLOCK = "SELECT clock_timestamp()"
