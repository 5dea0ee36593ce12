"""
A transaction left open for long: what has died since stays, and claims stay quick all the same.

Whoever holds it is named: in the log, on the page, in the metrics, to ``outrider status``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.road.stage import Cast, Stage
from tests.road.test_outage import FAULTS

if TYPE_CHECKING:
    from pathlib import Path

RATE, DEAD = 200, 400_000
OLD_S = 60  # horizon.OLD_S is five minutes: the daemon here is told of one
PATIENT = f"from daemon import horizon; from daemon.__main__ import main; horizon.OLD_S = {OLD_S}; main()"
# Inserted and deleted at once: nobody ever sees them, and nobody may remove them. Half lie where claims have been, half
# in the next minutes, where claims will go.
BLOAT = f"""
INSERT INTO outrider.queue (id, seq, lane, level, due_at)
SELECT gen_random_uuid(), -n, lane, level, now() + (n % 600 - 300) * interval '1 second'
  FROM generate_series(1, {DEAD}) AS n, (SELECT lane, level FROM outrider.queue LIMIT 1) AS one
"""


async def quantile(road: Stage, name: str, share: float) -> float:
    """The upper bound of the bucket in which that share of a histogram ends, all labels together; seconds."""
    text = (await road.ask("/metrics"))[1].decode()
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"outrider_{name}_bucket":
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return next(bound for bound in sorted(buckets) if buckets[bound] >= share * max(buckets.values()))


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_claims_stay_quick_and_the_culprit_is_named(database: str, tmp_path: Path) -> None:
    cast = Cast(senders={"72345": RATE}, services={"otp": ["72345"]})
    async with Stage.set_up(cast, tmp_path, database, faults=FAULTS) as road:
        report = await asyncpg.connect(database, server_settings={"application_name": "a report"})
        holder = await report.fetchval("SELECT pg_backend_pid()")
        open_ = report.transaction(isolation="repeatable_read")
        await open_.start()
        await report.fetchval("SELECT count(*) FROM outrider.outbox")
        await road.insert(RATE, service="otp", intent="delivery")
        async with road.connection.transaction():
            await road.connection.execute(BLOAT, timeout=120)
            await road.connection.execute("DELETE FROM outrider.queue WHERE seq < 0", timeout=120)
        await road.launch("-c", PATIENT)
        for _ in range(100):
            await road.insert(RATE, service="otp", intent="delivery")
            await asyncio.sleep(1)
        await road.connection.execute("VACUUM outrider.queue")
        dead = await road.connection.fetchval("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'queue'")
        assert dead > DEAD  # they are all there yet
        await road.quiet()
        p50, p99 = await quantile(road, "claim_seconds", 0.5), await quantile(road, "claim_seconds", 0.99)
        waited = await quantile(road, "queue_wait_seconds", 0.99)
        print(f"claims under {dead} dead rows: p50 <= {p50 * 1000:.1f}, p99 <= {p99 * 1000:.1f} ms;"
              f" from due to claimed p99 <= {waited * 1000:.0f} ms")  # fmt: skip
        who = f"process {holder} (a report)"
        assert who in (await road.ask("/"))[1].decode()
        assert f'outrider_vacuum_held_seconds{{who="{who}"}}' in (await road.ask("/metrics"))[1].decode()
        assert road.log.read_text().count('"event":"vacuum.held"') == 1
        assert who in road.log.read_text()
        assert len(await road.sent()) == 101 * RATE
        assert p99 <= 0.05
        await open_.rollback()
        await report.close()
        assert await road.stop() == 0
