"""
The tree's promises. Each rule is a function over a folder that returns what is wrong, and each is shown a planted wrong.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
DAEMON = ROOT / "daemon"
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

FILE_LINES, FUNCTION_LINES, POSITIONAL, BROAD_EXCEPTS = 400, 50, 5, 3

# What core/ may import from outside: nothing that waits, reads a clock, throws dice, or touches the machine.
PURE = frozenset(
    "__future__ abc base64 binascii bisect collections dataclasses decimal difflib enum fractions functools hashlib heapq hmac "
    "ipaddress itertools json math operator phonenumbers re statistics string struct textwrap types typing unicodedata "
    "urllib.parse uuid".split()
)
WITH_TYPES = PURE | {"datetime", "zoneinfo"}  # their values may pass through; now() and the like may not be asked
IMPURE_NAMES = frozenset("open print input exec eval breakpoint __import__".split())
IMPURE_METHODS = frozenset("now today utcnow fromtimestamp uuid1 uuid4 urandom read_text read_bytes write_text".split())

# What these rooms may know of the house. The simulator shares nothing that runs with what it judges.
KNOWS = {
    "core": {"core"},
    "provider": {"core"},
    "providers": {"core", "provider", "providers"},
    "simulator": {"simulator", "core", "settings"},
    "embedded": {"embedded"},
    "migrate": {"migrate"},
}
SHARED_BY_PROVIDERS = {"form"}

UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|NotImplementedError)\b|pragma: no cover")
SQL = re.compile(
    r"\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|CREATE|ALTER|DROP|GRANT|REVOKE|TRUNCATE|COPY|NOTIFY)\s"
)
SQL_LOWER = re.compile(r"\s*(?:select\s.+\sfrom|insert into|update\s.+\sset|delete from)\s", re.DOTALL)
# A lock, a setting, a cursor, a table or a channel of a session; a number or a place that only one database gives.
TIED = re.compile(
    r"pg_(?:try_)?advisory_(?:un)?lock(?:_shared)?\b|\b(?:LISTEN|NOTIFY|PREPARE|TEMP|TEMPORARY|WITH HOLD)\b"
    r"|(?:^|;)\s*SET\s|\b(?:nextval|currval|lastval|setval|ctid)\b",
    re.IGNORECASE,
)


def modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module under *folder*, by its path in it."""
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(folder)), ast.parse(path.read_text(), str(path))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each name imported: ``from a import b`` is a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def is_within(name: str, packages: frozenset[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def impure_core(folder: Path) -> list[str]:
    """Whatever under core/ could wait, know the time, throw dice, or touch the machine."""
    wrong = []
    for name, tree in modules(folder / "core"):
        for line, imported in imports(tree):
            if not is_within(imported, WITH_TYPES | {"daemon.core"}):
                wrong.append(f"core/{name}:{line} imports {imported}")
        for node in ast.walk(tree):
            match node:
                case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                    wrong.append(f"core/{name}:{node.lineno} waits")
                case ast.Name(id=called) if called in IMPURE_NAMES:
                    wrong.append(f"core/{name}:{node.lineno} names {called}")
                case ast.Attribute(attr=called) if called in IMPURE_METHODS:
                    wrong.append(f"core/{name}:{node.lineno} asks {called}")
                case _:
                    pass
    return wrong


def knowing_too_much(folder: Path) -> list[str]:
    """Imports out of a room that must not know the rest of the house."""
    wrong = []
    for name, tree in modules(folder):
        room = Path(name).parts[0].removesuffix(".py")
        for line, imported in imports(tree):
            first, _, rest = imported.partition(".")
            if room in KNOWS and first == "daemon" and rest.split(".")[0] not in KNOWS[room]:
                wrong.append(f"{name}:{line} imports {imported}")
    return wrong


def providers_of_one_mind(folder: Path) -> list[str]:
    """Providers that lean on one another: twilio_words.py belongs to twilio.py, and to nobody else."""
    wrong = []
    for name, tree in modules(folder / "providers"):
        mine = Path(name).stem.split("_")[0]
        for line, imported in imports(tree):
            parts = imported.split(".")
            if mine and parts[:2] == ["daemon", "providers"] and len(parts) > 2:
                theirs = parts[2].split("_")[0]
                if theirs not in SHARED_BY_PROVIDERS | {mine}:
                    wrong.append(f"providers/{name}:{line} imports {imported}")
    return wrong


def relative_imports(folder: Path) -> list[str]:
    """The rules above read absolute names."""
    return [f"{name}:{line}" for name, tree in modules(folder) for line, it in imports(tree) if it.startswith(".")]


def long_files(folder: Path) -> list[str]:
    lengths = {path: path.read_text().count("\n") for path in sorted(folder.rglob("*.py"))}
    return [f"{path.name}: {lines} lines" for path, lines in lengths.items() if lines > FILE_LINES]


def long_functions(folder: Path) -> list[str]:
    wrong = []
    for name, tree in modules(folder):
        for function in functions(tree):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > FUNCTION_LINES:
                wrong.append(f"{name}:{function.lineno} {function.name} has {lines} lines")
    return wrong


def crowded_signatures(folder: Path) -> list[str]:
    """More than five arguments by position; self and cls do not count."""
    wrong = []
    for name, tree in modules(folder):
        for function in functions(tree):
            given = [*function.args.posonlyargs, *function.args.args]
            count = len(given) - (bool(given) and given[0].arg in {"self", "cls"})
            if count > POSITIONAL:
                wrong.append(f"{name}:{function.lineno} {function.name} takes {count}")
    return wrong


def broad_excepts(folder: Path) -> list[str]:
    """All but three: the courier's, the supervisor's, the web's."""
    found = []
    for name, tree in modules(folder):
        for node in ast.walk(tree):
            match node:
                case ast.ExceptHandler(type=None):
                    found.append(f"{name}:{node.lineno}")
                case ast.ExceptHandler(type=ast.expr() as caught) if _is_broad(caught):
                    found.append(f"{name}:{node.lineno}")
                case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=arguments):
                    found += [f"{name}:{node.lineno}" for argument in arguments if _is_broad(argument)]
                case _:
                    pass
    return found if len(found) > BROAD_EXCEPTS else []


def _is_broad(caught: ast.expr) -> bool:
    return any(isinstance(it, ast.Name) and it.id in {"Exception", "BaseException"} for it in ast.walk(caught))


def unfinished(folder: Path) -> list[str]:
    wrong = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".sql", ".toml", ".js", ".css", ".html"}:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                wrong += [f"{path.name}:{number} {found[0]}" for found in UNFINISHED.finditer(line)]
    return wrong


def silent_modules(folder: Path) -> list[str]:
    return [f"{name} has no docstring" for name, tree in modules(folder) if not ast.get_docstring(tree)]


def false_map(folder: Path) -> list[str]:
    """What the map in __init__.py names and the house has not."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    files = re.findall(r"[\w/]+\.py\b|\b[\w/]+/(?=[\s`.,)]|$)|\bsql/\w+", text)
    names = re.findall(r"`daemon\.([a-z_.]+)", text)
    wrong = [f"{name} is not there" for name in files if not (folder / name).exists()]
    for name in names:
        parts = name.rstrip(".").split(".")
        places = [folder.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
        if not any(place.is_dir() or place.with_suffix(".py").exists() for place in places[:1]):
            wrong.append(f"daemon.{name} is not there")
    return wrong if files else ["the map in __init__.py names no file"]


def assembled_sql(folder: Path) -> list[str]:
    """Statements put together by f-string, format, % or +."""
    wrong = []
    for name, tree in modules(folder):
        for node in ast.walk(tree):
            match node:
                case ast.JoinedStr(values=[ast.Constant(value=str(text)), _, *_]):
                    pass
                case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
                    pass
                case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod() | ast.Add()):
                    pass
                case _:
                    continue
            if SQL.match(text) or SQL_LOWER.match(text):
                wrong.append(f"{name}:{node.lineno} assembles {text.strip()[:30]!r}")
    return wrong


def tied_statements(folder: Path) -> list[str]:
    """Statements that lean on their session, or on there being one database: a pooler, or a second one, breaks them."""
    return [
        f"{path.name} says {found.group()!r}"
        for path in (folder / "sql").glob("*.sql")
        for found in TIED.finditer(re.sub("--.*", "", path.read_text()))
    ]


def broken_contracts(folder: Path) -> list[str]:
    """The layers in pyproject.toml, over the package daemon in *folder*'s parent."""
    command = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(ROOT / "pyproject.toml")],
        cwd=folder.parent,  # the first place Python looks for daemon, because of -c
        capture_output=True,
        text=True,
        check=False,
    )
    return [done.stdout + done.stderr] if done.returncode else []


RULES: list[Callable[[Path], list[str]]] = [
    impure_core,
    knowing_too_much,
    providers_of_one_mind,
    relative_imports,
    long_files,
    long_functions,
    crowded_signatures,
    broad_excepts,
    unfinished,
    silent_modules,
    false_map,
    assembled_sql,
    tied_statements,
    broken_contracts,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule: Callable[[Path], list[str]]) -> None:
    assert rule(DAEMON) == []


LONG_BODY = "\n".join(f"    a = {number}" for number in range(FUNCTION_LINES))
PLANTED: list[tuple[Callable[[Path], list[str]], str, str, str]] = [
    *(
        (impure_core, "core/it.py", f"import {name}", f"imports {name}")
        for name in (
            "asyncio",
            "time",
            "random",
            "secrets",
            "socket",
            "os",
            "logging",
            "structlog",
            "aiohttp",
            "asyncpg",
            "threading",
            "pathlib",
            "daemon.clock",
        )
    ),
    (impure_core, "core/deep/it.py", "from daemon import database", "imports daemon.database"),
    (impure_core, "core/it.py", "from asyncio import sleep", "imports asyncio.sleep"),
    (impure_core, "core/it.py", "async def f(): ...", "waits"),
    (impure_core, "core/it.py", "def f():\n    import time", "imports time"),
    (impure_core, "core/it.py", "import datetime\na = datetime.datetime.now()", "asks now"),
    (impure_core, "core/it.py", "from uuid import UUID\na = UUID.uuid4()", "asks uuid4"),
    (impure_core, "core/it.py", "a = open('b')", "names open"),
    (knowing_too_much, "provider.py", "from daemon.settings import Settings", "imports daemon.settings.Settings"),
    (knowing_too_much, "providers/it.py", "from daemon import database", "imports daemon.database"),
    (knowing_too_much, "simulator/it.py", "from daemon import lanes", "imports daemon.lanes"),
    (providers_of_one_mind, "providers/it.py", "from daemon.providers.twilio_words import WORDS", "twilio_words"),
    (relative_imports, "it.py", "from . import clock", "it.py:1"),
    (long_files, "it.py", "a = 1\n" * (FILE_LINES + 1), "it.py: 401 lines"),
    (long_functions, "it.py", f"def f():\n{LONG_BODY}", "f has 51 lines"),
    (long_functions, "it.py", f"async def f():\n{LONG_BODY}", "f has 51 lines"),
    (crowded_signatures, "it.py", "class A:\n    def f(self, a, b, c, d, e, /, g): ...", "f takes 6"),
    (broad_excepts, "it.py", "try:\n    a\nexcept:\n    b\n" * 4, "it.py:15"),
    (broad_excepts, "it.py", "try:\n    a\nexcept (OSError, Exception):\n    b\n" * 4, "it.py:15"),
    (broad_excepts, "it.py", "suppress(BaseException)\n" * 4, "it.py:4"),
    *((unfinished, "sql/it.sql", f"-- {word}: later", word) for word in ("TODO", "FIXME", "XXX", "HACK")),
    (unfinished, "it.py", "raise NotImplementedError", "NotImplementedError"),
    (unfinished, "it.py", "a = 1  # pragma: no cover", "pragma: no cover"),
    (silent_modules, "it.py", "a = 1", "it.py has no docstring"),
    (false_map, "__init__.py", '"""The road: clock.py, lost.py."""', "lost.py is not there"),
    (false_map, "__init__.py", '"""The road: clock.py, and lost/ too."""', "lost/ is not there"),
    (false_map, "__init__.py", '"""clock.py. Start at :func:`daemon.lost.go`."""', "daemon.lost.go is not there"),
    (false_map, "__init__.py", '"""No map."""', "names no file"),
    (assembled_sql, "it.py", 'a = f"SELECT {b}"', "assembles 'SELECT'"),
    (assembled_sql, "it.py", 'a = f"\\n  DELETE FROM {b} WHERE c"', "assembles 'DELETE FROM'"),
    (assembled_sql, "it.py", 'a = f"select b from {c}"', "assembles 'select b from'"),
    (assembled_sql, "it.py", 'a = "UPDATE {} SET b".format(c)', "assembles 'UPDATE {} SET b'"),
    (assembled_sql, "it.py", 'a = "DROP TABLE %s" % b', "assembles 'DROP TABLE %s'"),
    (assembled_sql, "it.py", 'a = "ALTER TABLE " + b', "assembles 'ALTER TABLE'"),
    (tied_statements, "sql/it.sql", "SELECT pg_try_advisory_lock(1)", "'pg_try_advisory_lock'"),
    (tied_statements, "sql/it.sql", "LISTEN news", "'LISTEN'"),
    (tied_statements, "sql/it.sql", "SELECT 1; set statement_timeout = 1", "; set '"),
    (tied_statements, "sql/it.sql", "CREATE TEMP TABLE a ()", "'TEMP'"),
    (tied_statements, "sql/it.sql", "DECLARE a CURSOR WITH HOLD FOR SELECT 1", "'WITH HOLD'"),
    (tied_statements, "sql/it.sql", "DELETE FROM a WHERE ctid = $1", "'ctid'"),
    (tied_statements, "sql/it.sql", "SELECT nextval('a')", "'nextval'"),
    (broken_contracts, "ledger.py", "from daemon import courier", "daemon.ledger -> daemon.courier"),
    (broken_contracts, "core/it.py", "from daemon import providers", "daemon.core.it -> daemon.providers"),
    (broken_contracts, "web/it.py", "from daemon import app", "daemon.web.it -> daemon.app"),
    (broken_contracts, "courier.py", "from daemon import simulator", "daemon.courier -> daemon.simulator"),
]


@pytest.mark.parametrize(("rule", "place", "text", "told"), PLANTED)
def test_a_planted_wrong_is_seen(
    rule: Callable[[Path], list[str]], place: str, text: str, told: str, tmp_path: Path
) -> None:
    house = tmp_path / "daemon"
    for path in DAEMON.rglob("*.py"):  # a house of the same rooms, all empty
        room = house / path.relative_to(DAEMON)
        room.parent.mkdir(parents=True, exist_ok=True)
        room.write_text('"""A room."""\n')
    (house / "__init__.py").write_text('"""Kept in clock.py."""\n')
    assert rule(house) == []
    planted = house / place
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text)
    assert any(told in line for line in rule(house)), rule(house)


def test_every_rule_was_shown_a_wrong() -> None:
    assert {rule for rule, *_ in PLANTED} == set(RULES)
