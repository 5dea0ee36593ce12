"""
What every test may ask for: a real Postgres, a fresh migrated database in it, a connection to that, and the loop we run on.

``postgres`` is the wheel's Postgres; a test marked ``every_postgres`` runs once more on the oldest we support, from
Debian's package. Each test has a database of its own, cloned from a migrated template, so nothing is ever cleaned up.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
import uvloop

from daemon import embedded
from daemon.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping

OLDEST = Path("/usr/lib/postgresql/15/bin")  # Debian 12's package postgresql-15
VERSIONS = ("18", "15")
TEMPLATE = "template_of_tests"

T = TypeVar("T")

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=5_000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        config.option.markexpr = "not long"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres" in metafunc.fixturenames:
        wanted = VERSIONS if metafunc.definition.get_closest_marker("every_postgres") else VERSIONS[:1]
        metafunc.parametrize("postgres", wanted, indirect=True, scope="session")


class Cluster:
    """One Postgres of the session, and the template its databases are cloned from."""

    def __init__(self, server: embedded.Server, version: str) -> None:
        self.server = server
        self.version = version
        # A loop of our own: fixtures here are synchronous, and the tests' loops come and go.
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._admin = self._run(asyncpg.connect(server.dsn("postgres")))
        self._numbers = count(1)
        self._has_template = False

    def clone(self, *, migrated: bool = True) -> str:
        """Make a database and return its name; without the schema if not *migrated*."""
        name = f"test_{next(self._numbers)}"
        if migrated:
            self._make_template()
        self._run(self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE if migrated else 'template0'}"))
        return name

    def drop(self, name: str) -> None:
        self._run(self._admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def close(self) -> None:
        self._run(self._admin.close())
        self._runner.close()
        self.server.stop()

    def _make_template(self) -> None:
        if not self._has_template:
            self._run(self._admin.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0"))
            self._run(_migrate(self.server.dsn(TEMPLATE)))
            self._has_template = True

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return self._runner.run(work)


async def _migrate(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection, report=lambda _line: None)
    await connection.close()


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[[str], Cluster]]:
    """Start a Postgres of the asked version on first need."""
    # Not tmp_path: that is closed to nobody, whom Postgres becomes when the tests run as root; and too long for a socket.
    home = Path(tempfile.mkdtemp(prefix="outrider-tests-"))
    home.chmod(0o755)
    running: dict[str, Cluster] = {}

    def of(version: str) -> Cluster:
        if version not in running:
            programs = OLDEST if version == "15" else embedded.binaries()
            if not programs.is_dir():
                pytest.skip(f"NOT TESTED ON POSTGRES {version}: {programs} is missing (apt-get install postgresql-15)")
            running[version] = Cluster(embedded.Server.from_binaries(programs, home / version, durable=False), version)
        return running[version]

    yield of
    for cluster in running.values():
        cluster.close()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def postgres(clusters: Callable[[str], Cluster], request: pytest.FixtureRequest) -> Cluster:
    """A Postgres: the newest, or each in turn for a test marked ``every_postgres``."""
    return clusters(request.param)


@pytest.fixture
def database(postgres: Cluster) -> Iterator[str]:
    """The DSN of a fresh, migrated database."""
    name = postgres.clone()
    yield postgres.server.dsn(name)
    postgres.drop(name)


@pytest.fixture
def empty_database(postgres: Cluster) -> Iterator[str]:
    """The DSN of a fresh database without the schema."""
    name = postgres.clone(migrated=False)
    yield postgres.server.dsn(name)
    postgres.drop(name)


@pytest_asyncio.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to ``database``."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()
