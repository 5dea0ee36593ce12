-- What senders have said lately, whoever spoke for them: seconds ago, and segments. The pace of a group that changes hands
-- is reckoned from it.
--   $1 senders text[], $2 seconds double precision   how lately
SELECT sender, segments, extract(epoch FROM clock_timestamp() - at)::float8 AS ago_s
  FROM (SELECT u.sender, u.segments, u.accepted_at AS at
          FROM outrider.outcome u
         WHERE u.accepted_at > clock_timestamp() - make_interval(secs => $2) AND u.sender = ANY ($1::text[])
        UNION ALL
        SELECT a.sender, a.segments, a.at
          FROM outrider.queue q JOIN outrider.attempt a ON a.id = q.id AND a.attempt = q.attempts AND a.kind = 'exchange'
         WHERE q.state = 'unknown'
           AND a.at > clock_timestamp() - make_interval(secs => $2) AND a.sender = ANY ($1::text[])) AS said
 WHERE segments > 0
