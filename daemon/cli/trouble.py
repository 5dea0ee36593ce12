"""
Trouble a person can cause or cure, told in one or two lines; a traceback is for bugs only.

Exit codes: 0 clean, 1 failed, 2 wrong usage (typer's), 78 bad configuration or schema (EX_CONFIG of sysexits.h).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 1
BAD_CONFIGURATION = 78


class Trouble(Exception):
    """A command cannot do what was asked. Each line tells what is wrong or what to do about it."""

    def __init__(self, *lines: str, code: int = FAILED) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.code = code


@contextmanager
def plain_words() -> Iterator[None]:
    """Turn known trouble into lines on stderr and an exit code. What is not known here is a bug, and shows itself."""
    import asyncpg

    from daemon.database import DatabaseDown
    from daemon.embedded import EmbeddedError
    from daemon.migrate import SchemaError
    from daemon.settings import SettingsError

    try:
        yield
    except Trouble as trouble:
        _fail(*trouble.lines, code=trouble.code)
    except SettingsError as mistakes:
        _fail(*str(mistakes).splitlines(), code=BAD_CONFIGURATION)
    except SchemaError as mismatch:
        _fail(*str(mismatch).splitlines(), code=BAD_CONFIGURATION)
    except EmbeddedError as missing:
        _fail(*str(missing).splitlines())
    except DatabaseDown as down:
        _fail(f"the database went away: {down}")
    except asyncpg.InsufficientPrivilegeError as refused:
        _fail(f"the database refuses: {refused}", "connect as a user with the role that may (README, roles)")
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _fail(f"the database says: {error}")
    except ConnectionError as lost:
        _fail(f"the connection was lost: {lost}")


def _fail(*lines: str, code: int = FAILED) -> None:
    for line in lines:
        typer.secho(line, err=True, fg="red" if line is lines[0] else None)
    raise typer.Exit(code)
