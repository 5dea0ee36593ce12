"""
Who we are, and whether this is our database: a copy of it must not send.

The state folder remembers the daemon (its id outlives restarts); the database remembers where it lives. A restored or
cloned database finds another system identifier, database or timeline than the one written in it, and then the daemon
holds until an operator says that this one is now the only one that sends (``outrider resume --sole-sender``).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Line

WHERE = """
SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database_oid,
       -- Of the present WAL: the control file tells a promotion only after the next checkpoint.
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer END AS timeline
"""


@dataclass(frozen=True, slots=True)
class Home:
    """What the database says of itself."""

    token_key: bytes  # signs the tokens in callback URLs
    stranger: str | None  # why it must not send; None when it is where it belongs


def instance_id(folder: Path) -> UUID:
    """
    The id of this state folder's daemon; made on first use, by one alone. A damaged one is as good as none: what its
    daemon had in hand is another's then, and in doubt.
    """
    path, fresh = folder / "instance", folder / f"instance.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh.write_text(f"{uuid4()}\n", encoding="ascii")
    try:
        with suppress(FileExistsError):
            os.link(fresh, path)  # whole or not at all
        try:
            return UUID(path.read_text(encoding="ascii", errors="replace").strip())
        except ValueError:
            fresh.replace(path)
            return UUID(path.read_text(encoding="ascii").strip())
    finally:
        fresh.unlink(missing_ok=True)


async def at_home(line: Line) -> Home:
    """Compare where the database is with where it says it lives; a new one settles here. Raises DatabaseDown."""
    here = (await line.ask(WHERE))[0]
    await line.ask(
        "INSERT INTO outrider.home (system_identifier, database_oid, timeline) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING",
        here["system_identifier"], here["database_oid"], here["timeline"],
    )  # fmt: skip
    written = (await line.ask("SELECT * FROM outrider.home"))[0]
    for fact, meaning in (
        ("system_identifier", "it was copied to another server"),
        ("database_oid", "it was restored beside the original"),
        ("timeline", "a standby was promoted"),
    ):
        if written[fact] != here[fact]:
            return Home(
                written["token_key"],
                f"this database is not where it used to be ({meaning}): outrider resume --sole-sender",
            )
    return Home(written["token_key"], None)
