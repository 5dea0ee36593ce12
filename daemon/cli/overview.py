"""What ``outrider status`` shows without an id: the queue, the last hour, the daemons, who holds what, the pauses."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypedDict
from uuid import UUID

from daemon.cli import queries
from daemon.cli.database import connected
from daemon.cli.render import ago, console, moment, span, table

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

DAY_S = 86_400.0
FRESH_S = 15.0  # a daemon describes itself every few seconds; one silent for longer has a question mark


class Overview(TypedDict):
    """Everything the overview shows, as it stands in its JSON."""

    queue: list[dict[str, object]]
    in_flight: int
    oldest_due: datetime | None
    last_hour: list[dict[str, object]]
    instances: list[dict[str, object]]
    groups: list[dict[str, object]]
    pauses: list[dict[str, object]]
    books: list[dict[str, object]]
    anomalies: list[dict[str, object]]
    parked: int
    vacuum_held: str | None


async def look(config: Path | None) -> Overview:
    """Ask the database for all of it."""
    async with connected(config) as connection:
        queue = [dict(row) for row in await connection.fetch(queries.BACKLOG)]
        dues = [row["oldest_due"] for row in queue if row["oldest_due"] is not None]
        return Overview(
            queue=queue,
            in_flight=await connection.fetchval(queries.IN_FLIGHT),
            oldest_due=min(dues, default=None),
            last_hour=[dict(row) for row in await connection.fetch(queries.LAST_HOUR, first_id(time.time() - DAY_S))],
            instances=[dict(row) for row in await connection.fetch(queries.INSTANCES)],
            groups=[dict(row) for row in await connection.fetch(queries.GROUPS)],
            pauses=[dict(row) for row in await connection.fetch(queries.PAUSES)],
            books=[dict(row) for row in await connection.fetch(queries.BOOKS)],
            anomalies=[dict(row) for row in await connection.fetch(queries.ANOMALIES)],
            parked=await connection.fetchval(queries.PARKED),
            vacuum_held=await _vacuum_held(connection),
        )


async def _vacuum_held(connection: asyncpg.Connection[asyncpg.Record]) -> str | None:
    """Who keeps vacuum from its work, where the role that asks may know since when (pg_read_all_stats)."""
    from daemon.database import statement
    from daemon.horizon import OLD_S, Culprit

    row = await connection.fetchrow(statement("horizon"))
    return str(Culprit(row["who"], row["age_s"])) if row is not None and (row["age_s"] or 0.0) >= OLD_S else None


def first_id(at: float) -> UUID:
    """The smallest time-ordered id of the moment *at* (seconds since the epoch), as ``outrider.first_id`` makes it."""
    return UUID(f"{int(at * 1000):012x}".ljust(32, "0"))


def show(seen: Overview) -> None:
    """Print it for a person."""
    out = console()
    if seen["queue"]:
        columns: tuple[str, ...] = ("lane", "level", "state", "messages", "oldest due")
        waiting = ((*(row[name] for name in columns[:4]), _ago(row["oldest_due"])) for row in seen["queue"])
        out.print(table("Waiting", columns, waiting))
        oldest = seen["oldest_due"]
        late = f", the oldest due {span((datetime.now(UTC) - oldest).total_seconds())} ago" if oldest else ""
        out.print(f"{seen['in_flight']} of them in a daemon's hands{late}\n")
    else:
        out.print("Nothing waits.\n")
    if seen["last_hour"]:
        columns = ("service", "status", "messages")
        became = ((row[name] for name in columns) for row in seen["last_hour"])
        out.print(table("Became within the last hour", columns, map(tuple, became)))
    _show_books(seen)
    if seen["pauses"]:
        paused = ((row["what"], _moment(row["at"]), row["reason"]) for row in seen["pauses"])
        out.print(table("Paused", ("what", "since", "reason"), paused))
    if seen["vacuum_held"]:
        out.print(f"{seen['vacuum_held']}: dead rows pile up until its transaction ends.\n")
    if seen["instances"]:
        columns = ("host", "pid", "version", "settings", "up since", "seen", "holds")
        out.print(table("Daemons", columns, map(_instance, seen["instances"])))
        columns = ("group", "senders", "spoken for by", "epoch", "since", "lease")
        out.print(table("Groups", columns, map(_group, seen["groups"])))
    else:
        out.print("No daemon has been seen for ten minutes: `outrider run` starts one.")


def _show_books(seen: Overview) -> None:
    out = console()
    if seen["books"]:
        columns: tuple[str, ...] = ("day", "intent", "inserted", "settled", "open", "difference")
        lines = ((row["day"], row["intent"] or "none", *(row[name] for name in columns[2:])) for row in seen["books"])
        out.print(table("Books: inserted = settled + open", columns, lines))
    if any(row["difference"] for row in seen["books"]):
        out.print("Messages are missing: SELECT * FROM outrider.missing() names them.\n")
    if seen["anomalies"]:
        columns = ("kind", "messages", "latest", "for example")
        odd = ((row["kind"], row["messages"], _ago(row["latest"]), row["detail"]) for row in seen["anomalies"])
        out.print(table("Anomalies of the last day (outrider.anomaly has each)", columns, odd))
    if seen["parked"]:
        out.print(f"{seen['parked']} parked receipts wait for a message that nobody knows yet\n")


def _instance(row: dict[str, object]) -> tuple[object, ...]:
    seen_at, holds = row["seen_at"], row["holds"]
    silent = isinstance(seen_at, datetime) and (datetime.now(UTC) - seen_at).total_seconds() > FRESH_S
    groups = ", ".join(map(str, holds)) if isinstance(holds, list) and holds else "nothing"
    settings = str(row["config_hash"])[:8]  # two daemons that differ here share nothing
    seen = _ago(seen_at) + " ?" * silent + ("" if row["serving"] else " (not serving)")
    return row["host"], row["pid"], row["version"], settings, _moment(row["started_at"]), seen, groups


def _group(row: dict[str, object]) -> tuple[object, ...]:
    senders, held = row["senders"], row["owner"] is not None
    count = len(senders) if isinstance(senders, list) else 0
    who = f"{row['host']}/{row['pid']}" if held else "nobody"
    lease = f"{row['left_s']:.0f} s left" if held else "free"
    return row["grp"], count, who, row["epoch"], _ago(row["taken_at"]) if held else "", lease


def _moment(at: object) -> str:
    return moment(at) if isinstance(at, datetime) else ""


def _ago(at: object) -> str:
    return ago(at) if isinstance(at, datetime) else ""
