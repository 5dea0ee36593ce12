"""The command line: what it prints, what it does to the database, and that trouble is told in words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
from typer.testing import CliRunner

from daemon.cli import app, dead
from daemon.cli.serve import without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typer.testing import Result

    Outrider = Callable[..., Result]

ROOT = Path(__file__).resolve().parents[2]
PERSON = "+12025550123"
COMMANDS = [
    "run", "migrate", "check", "demo", "simulate", "send", "status", "why", "pause", "resume", "cancel", "psql", "bench",
    "dead list", "dead show", "dead replay", "selftest crash",
]  # fmt: skip


def written(tmp_path: Path, dsn: str) -> Path:
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        [database]
        url = {json.dumps(dsn)}
        [daemon]
        state = "state"
        [providers.practice]
        kind = "simulator"
        [[senders]]
        address = "+12015550103"
        provider = "practice"
        rate = 12
        [services.news]
        senders = ["+12015550103"]
        """
    )
    return config


@pytest.fixture
def outrider(tmp_path: Path, database: str) -> Outrider:
    """Run one command line against ``database``; the configuration is given for us."""
    config = written(tmp_path, database)
    return lambda *words, **more: invoke(*words, "--config", str(config), **more)


def invoke(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(words), input=stdin, catch_exceptions=False)


def ask(dsn: str, query: str, *arguments: object) -> list[asyncpg.Record]:
    async def once() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(once())


def sent(outrider: Outrider, *words: str) -> str:
    result = outrider("send", "--to", PERSON, "--service", "news", "--body", "hello", *words)
    assert result.exit_code == 0, result.output
    return str(result.stdout.strip())


def ended(database: str, message: str, status: str, reason: str, code: str | None = None) -> None:
    ask(database, "DELETE FROM outrider.queue WHERE id = $1", message)
    ask(
        database,
        "INSERT INTO outrider.outcome (id, status, rank, attempts, reason, code) VALUES ($1, $2, 40, 1, $3, $4)",
        message, status, reason, code,
    )  # fmt: skip


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_teaches_by_examples(self, command: str) -> None:
        result = invoke(*command.split(), "--help")

        assert result.exit_code == 0
        assert f"outrider {command}" in result.output.partition("Examples")[2]

    def test_without_a_word_it_shows_what_there_is(self) -> None:
        result = invoke()

        assert all(command.partition(" ")[0] in result.output for command in COMMANDS)

    def test_the_version_is_that_of_the_package(self) -> None:
        from daemon import __version__

        assert invoke("--version").stdout == f"outrider {__version__}\n"

    def test_help_loads_none_of_the_heavy_parts(self) -> None:
        heavy = "{'asyncpg', 'aiohttp', 'uvloop', 'phonenumbers', 'pydantic', 'rich', 'jinja2'}"
        code = f"import sys, daemon.cli; print(*({heavy} & set(sys.modules)))"

        assert _python("-c", code).stdout.strip() == ""

    def test_both_ways_in_are_one(self) -> None:
        assert _python("-m", "daemon", "--version").stdout == invoke("--version").stdout


class TestTrouble:
    @pytest.mark.parametrize(
        "words",
        [
            ["send"],
            ["send", "--too", PERSON],
            ["send", "--to", PERSON, "--body", "x", "--validity", "soon"],
            ["send", "--to", PERSON, "--body", "x", "--send-at", "tomorrow"],
            ["cancel", "not-an-id"],
            ["pause", "marketing"],
            ["resume"],
            ["resume", "all", "--sole-sender"],
            ["dead", "replay"],
            ["dead", "replay", str(uuid4()), "--reason", "%"],
            ["dead", "replay", str(uuid4()), "--tag", "campaign=spring"],
            ["dead", "replay", "--reason", "%", "--rate", "0"],
            ["demo", "--messages", "0"],
            ["nothing"],
        ],
    )
    def test_wrong_usage_is_2(self, words: Sequence[str]) -> None:
        assert invoke(*words).exit_code == 2

    def test_without_a_configuration_it_says_where_it_looked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        result = invoke("status")

        assert result.exit_code == 78
        assert "config.toml" in result.stderr
        assert "outrider demo" in result.stderr

    def test_every_mistake_of_a_configuration_has_its_line(self, tmp_path: Path) -> None:
        config = tmp_path / "config.toml"
        config.write_text('[daemon]\nlog_levle = "info"\n[[senders]]\naddress = "nobody"\nprovider = "nowhere"\n')

        result = invoke("check", "--config", str(config))

        assert result.exit_code == 78
        assert "log_levle" in result.stderr
        assert "nowhere" in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_database_that_is_down_is_told_without_its_password(self, tmp_path: Path) -> None:
        config = written(tmp_path, "postgresql://app:s3cret@127.0.0.1:1/shop")

        result = invoke("status", "--config", str(config))

        assert result.exit_code == 1
        assert "app:***@127.0.0.1:1/shop" in result.stderr
        assert "s3cret" not in result.output
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize("words", [["status"], ["send", "--to", PERSON, "--body", "x"], ["pause", "all"]])
    def test_a_database_without_the_schema_is_78(
        self, tmp_path: Path, empty_database: str, words: Sequence[str]
    ) -> None:
        result = invoke(*words, "--config", str(written(tmp_path, empty_database)))

        assert result.exit_code == 78
        assert "outrider migrate" in result.stderr

    def test_an_id_nobody_inserted_is_told(self, outrider: Outrider) -> None:
        for command in ("status", "why"):
            result = outrider(command, str(uuid4()))
            assert result.exit_code == 1
            assert "no message has the id" in result.stderr
            result = outrider(command, "SM404")
            assert result.exit_code == 1
            assert "no message has the id or the provider's reference SM404" in result.stderr


class TestSchemaAndCheck:
    def test_migrate_applies_once_and_check_is_content(self, tmp_path: Path, empty_database: str) -> None:
        config = str(written(tmp_path, empty_database))

        before = invoke("check", "--config", config, "--json")
        first = invoke("migrate", "--config", config)
        second = invoke("migrate", "--config", config)
        after = invoke("check", "--config", config, "--json")

        assert (before.exit_code, json.loads(before.stdout)["schema"]) == (78, "wrong")
        assert "0001_tables applied" in first.stdout
        assert "up to date" in second.stdout
        assert (after.exit_code, json.loads(after.stdout)["schema"]) == (0, "as it should be")

    def test_check_shows_who_speaks_how_fast_and_no_secret(self, outrider: Outrider) -> None:
        result = outrider("check", "--json")
        found = json.loads(result.stdout)

        assert [(one["name"], one["rate"]) for one in found["services"]] == [("news", 12.0)]
        assert found["providers"] == [
            {"name": "practice", "kind": "simulator", "base_url": "inside the daemon", "secrets": True}
        ]
        assert abs(found["clock_difference_s"]) < 1
        assert "token" not in result.stdout

    def test_check_has_words_for_people(self, outrider: Outrider) -> None:
        result = outrider("check")

        assert result.exit_code == 0
        assert "+12015550103" in result.stdout
        assert "is sound" in result.stdout


class TestSend:
    def test_it_inserts_what_it_was_told(self, outrider: Outrider, database: str) -> None:
        message = sent(
            outrider, "--intent", "marketing", "--sender", "+12015550103", "--key", "k", "--validity", "1h 30m"
        )

        (row,) = ask(database, "SELECT * FROM outrider.outbox WHERE id = $1", message)
        assert (row["recipient"], row["body"], row["service"], row["intent"]) == (PERSON, "hello", "news", "marketing")
        assert (row["sender"], row["idempotency_key"]) == ("+12015550103", "k")
        assert row["validity"].total_seconds() == 5400

    def test_the_text_may_come_by_standard_input(self, outrider: Outrider, database: str) -> None:
        message = outrider("send", "--to", PERSON, "--service", "news", stdin="  zwei\nZeilen \n").stdout.strip()

        assert ask(database, "SELECT body FROM outrider.outbox WHERE id = $1", message)[0]["body"] == "  zwei\nZeilen "

    def test_a_repeated_key_is_told_as_such(self, outrider: Outrider) -> None:
        first, second = sent(outrider, "--key", "order-77"), sent(outrider, "--key", "order-77")

        seen = json.loads(outrider("status", second, "--json").stdout)
        assert (seen["status"], seen["reason"]) == ("suppressed", f"duplicate of {first}")

    def test_a_later_time_is_kept(self, outrider: Outrider) -> None:
        message = sent(outrider, "--send-at", "+10m")

        assert "not due before" in json.loads(outrider("status", message, "--json").stdout)["reason"]

    def test_wait_ends_with_the_message(self, outrider: Outrider) -> None:
        sent(outrider, "--key", "once")

        result = outrider("send", "--to", PERSON, "--body", "x", "--key", "once", "--wait", "--json")

        assert result.exit_code == 1  # a repeat is not delivered
        assert json.loads(result.stdout)["status"] == "suppressed"
        assert "duplicate of" in result.stderr

    def test_wait_gives_up(self, outrider: Outrider) -> None:
        result = outrider("send", "--to", PERSON, "--body", "x", "--wait", "--timeout", "1")

        assert result.exit_code == 1
        assert "outrider why" in result.stderr


class TestLooking:
    def test_the_overview_counts_what_waits(self, outrider: Outrider) -> None:
        sent(outrider), sent(outrider, "--intent", "otp")

        seen = json.loads(outrider("status", "--json").stdout)

        assert {(one["lane"], one["level"], one["messages"]) for one in seen["queue"]} == {
            ("news", 3, 1),
            ("news", 1, 1),
        }
        assert seen["in_flight"] == 0
        assert seen["oldest_due"] is not None

    def test_the_overview_tells_the_last_hour_and_the_pauses(self, outrider: Outrider, database: str) -> None:
        ended(database, sent(outrider), "failed", "21614: no mobile number")
        outrider("pause", "service:news", "--reason", "wrong price")

        result = outrider("status")

        assert "failed" in result.stdout
        assert "wrong price" in result.stdout
        assert "outrider run" in result.stdout  # no daemon is there

    def test_the_overview_says_when_messages_are_missing(self, outrider: Outrider, database: str) -> None:
        sent(outrider, "--intent", "otp")
        message = sent(outrider, "--intent", "otp")
        ask(database, "SELECT outrider.balance()")
        (line,) = json.loads(outrider("status", "--json").stdout)["books"]
        assert (line["intent"], line["inserted"], line["open"], line["difference"]) == ("otp", 2, 2, 0)

        ask(database, "DELETE FROM outrider.queue WHERE id = $1", message)
        ask(database, "SELECT outrider.balance()")
        ask(
            database,
            "INSERT INTO outrider.anomaly (kind, reference, detail) VALUES ('orphan', 'SM1', 'nobody knows it')",
        )
        ask(database, "INSERT INTO outrider.parked (provider, reference) VALUES ('sim', 'SM2')")

        result = outrider("status")
        assert "outrider.missing()" in result.stdout
        assert "nobody knows it" in result.stdout
        assert "1 parked receipts wait" in result.stdout
        (line,) = json.loads(outrider("status", "--json").stdout)["books"]
        assert line["difference"] == 1

    def test_markup_in_a_reason_is_text(self, outrider: Outrider, database: str) -> None:
        message = sent(outrider)
        ended(database, message, "failed", "[/bold] said the provider")
        ask(database, "INSERT INTO outrider.pause (what, reason) VALUES ('all', '[/red] said the operator')")

        assert "[/bold] said" in outrider("status", message).stdout
        assert "[/red] said" in outrider("status").stdout
        assert "[/bold] said" in outrider("dead", "list").stdout

    def test_an_id_in_a_table_stays_whole(self, outrider: Outrider, database: str) -> None:
        message = sent(outrider)
        ended(database, message, "failed", "a reason that needs more than one line of any terminal " * 4)

        assert message in outrider("dead", "list").stdout

    def test_why_tells_the_story_in_order_and_hides_the_person(self, outrider: Outrider, database: str) -> None:
        message = sent(outrider)
        ask(
            database,
            "INSERT INTO outrider.attempt (id, attempt, kind, outcome, reason) VALUES ($1, 1, 'exchange', 'throttled', '429')",
            message,
        )

        told = json.loads(outrider("why", message, "--json").stdout)
        shown = outrider("why", message).stdout

        assert [line["what"] for line in told["story"]] == ["inserted", "exchange 1", "now queued"]
        assert PERSON not in shown
        assert shown.index("inserted") < shown.index("throttled") < shown.index("now queued")

    def test_a_message_is_found_by_what_its_provider_calls_it(self, outrider: Outrider, database: str) -> None:
        other, message = sent(outrider), sent(outrider)
        for reference, id in (("SM1", other), ("SM2", message)):
            ask(
                database,
                "INSERT INTO outrider.outcome (id, status, rank, reference) VALUES ($1, 'accepted', 10, $2)",
                id,
                reference,
            )

        assert json.loads(outrider("why", "SM2", "--json").stdout)["message"]["id"] == message
        assert json.loads(outrider("status", "SM1", "--json").stdout)["id"] == other


class TestOperating:
    def test_cancel_tells_each_what_it_came_to(self, outrider: Outrider) -> None:
        message, stranger = sent(outrider), str(uuid4())

        first = outrider("cancel", message, stranger)
        second = outrider("cancel", message, "--json")

        assert first.exit_code == 1
        assert first.stdout.splitlines() == [f"{message} canceled", f"{stranger} unknown"]
        assert second.exit_code == 0
        assert json.loads(second.stdout) == [{"id": message, "result": "too_late"}]

    def test_a_pause_holds_until_it_is_resumed(self, outrider: Outrider, database: str) -> None:
        paused = outrider("pause", "sender:+12015550103")
        held = ask(database, "SELECT what FROM outrider.pause")
        resumed = outrider("resume", "sender:+12015550103")
        again = outrider("resume", "sender:+12015550103")

        assert paused.exit_code == 0
        assert [row["what"] for row in held] == ["sender:+12015550103"]
        assert resumed.exit_code == 0
        assert ask(database, "SELECT what FROM outrider.pause") == []
        assert again.exit_code == 1
        assert "was not paused" in again.stderr

    def test_a_copied_database_is_confirmed_only_by_saying_so(self, outrider: Outrider, database: str) -> None:
        nothing = outrider("resume", "--sole-sender", "--yes")
        ask(database, "INSERT INTO outrider.home (system_identifier, database_oid, timeline) VALUES (1, 2, 99)")
        refused = outrider("resume", "--sole-sender", stdin="n\n")
        before = ask(database, "SELECT timeline FROM outrider.home")[0]["timeline"]
        confirmed = outrider("resume", "--sole-sender", stdin="y\n")
        (home,) = ask(
            database,
            "SELECT h.system_identifier = s.system_identifier AND h.timeline = c.timeline_id AND h.database_oid = d.oid AS ours"
            "  FROM outrider.home h, pg_control_system() s, pg_control_checkpoint() c, pg_database d"
            " WHERE d.datname = current_database()",
        )

        assert nothing.exit_code == 1
        assert refused.exit_code == 1
        assert before == 99
        assert confirmed.exit_code == 0
        assert home["ours"]


class TestDeadLetters:
    def test_they_are_listed_by_reason_code_and_time(self, outrider: Outrider, database: str) -> None:
        off, spam = sent(outrider), sent(outrider)
        ended(database, off, "undelivered", "the handset is off", "30003")
        ended(database, spam, "failed", "filtered by the carrier", "30007")

        def listed(*words: str) -> list[str]:
            return [row["id"] for row in json.loads(outrider("dead", "list", "--json", *words).stdout)]

        assert listed() == [spam, off]
        assert listed("--reason", "%carrier%") == [spam]
        assert listed("--reason", "30003") == [off]
        assert listed("--since", "+1m") == []
        assert listed("--limit", "1") == [spam]
        assert PERSON not in outrider("dead", "list").stdout

    def test_replay_queues_again_what_fits_and_nothing_else(self, outrider: Outrider, database: str) -> None:
        off, spam, stopped = sent(outrider), sent(outrider), sent(outrider)
        ended(database, off, "undelivered", "the handset is off", "30003")
        ended(database, spam, "failed", "filtered by the carrier", "30007")
        ended(database, stopped, "suppressed", "opted out of the handset list")

        dry = outrider("dead", "replay", "--reason", "%handset%", "--dry-run")
        done = outrider("dead", "replay", "--reason", "%handset%")

        assert dry.stdout == f"{off} would be replayed\n"
        assert done.stdout == f"{off} replayed\n"
        assert {str(row["id"]) for row in ask(database, "SELECT id FROM outrider.queue")} == {off}

    def test_what_may_not_be_replayed_is_refused(self, outrider: Outrider) -> None:
        waiting = sent(outrider)

        result = outrider("dead", "replay", waiting)

        assert result.exit_code == 1
        assert result.stdout == f"{waiting} refused: already queued\n"

    def test_a_preview_says_how_many_and_who_is_left_out_and_why(self, outrider: Outrider, database: str) -> None:
        fits, doubtful, other = sent(outrider), sent(outrider), sent(outrider)
        for message in (fits, doubtful):
            ended(database, message, "dead", "gave up")
        ended(database, other, "dead", "another story")
        ask(
            database,
            "INSERT INTO outrider.attempt (id, attempt, kind, outcome) VALUES ($1, 1, 'exchange', 'uncertain')",
            doubtful,
        )

        seen = outrider("dead", "replay", "--reason", "gave up", "--status", "dead", "--preview")
        told = json.loads(outrider("dead", "replay", "--reason", "gave up", "--preview", "--json").stdout)

        assert seen.exit_code == 0
        assert seen.stdout.splitlines() == [f"{fits} would be replayed", f"{doubtful} refused: in doubt"]
        assert seen.stderr == "1 would be replayed (1 segments), 1 in doubt (1 segments)\n"
        assert told == [
            {"id": fits, "result": "would be replayed", "segments": 1, "due_at": None},
            {"id": doubtful, "result": "refused", "why": "in doubt", "segments": 1},
        ]
        assert ask(database, "SELECT FROM outrider.queue") == []
        assert outrider("dead", "replay", doubtful, "--doubtful").stdout == f"{doubtful} replayed\n"

    def test_a_filter_is_made_of_all_its_options(self, outrider: Outrider, database: str) -> None:
        first, second = sent(outrider), sent(outrider)
        for message in (first, second):
            ended(database, message, "failed", "gave up")
        ask(database, """UPDATE outrider.outbox SET tags = '{"campaign": "spring"}' WHERE id = $1""", first)

        def listed(*words: str) -> list[str]:
            return [row["id"] for row in json.loads(outrider("dead", "list", "--json", *words).stdout)]

        assert listed("--tag", "campaign=spring", "--service", "news") == [first]
        assert listed("--tag", "campaign=autumn") == []
        assert listed("--until", "-1h") == []
        assert listed("--provider", "nobody") == []
        assert outrider("dead", "list", "--status", "delivered").exit_code == 2
        assert outrider("dead", "replay", "--tag", "spring").exit_code == 2
        assert outrider("dead", "replay", "--tag", "campaign=spring").stdout == f"{first} replayed\n"

    def test_many_are_confirmed_at_a_terminal_and_spread_over_time(
        self, outrider: Outrider, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dead, "_at_a_terminal", lambda: True)
        monkeypatch.setattr(dead, "BATCH", 40)
        ask(
            database,
            "WITH asked AS (INSERT INTO outrider.outbox (recipient, service, body) SELECT '+12025550123', 'news', 'x'"
            "  FROM generate_series(1, 101) RETURNING id),"
            " gone AS (INSERT INTO outrider.outcome (id, status, rank, reason) SELECT id, 'dead', 5, 'gave up' FROM asked)"
            " SELECT",
        )
        ask(database, "DELETE FROM outrider.queue")

        refused = outrider("dead", "replay", "--reason", "gave up", stdin="n\n")
        untouched = ask(database, "SELECT FROM outrider.queue")
        limited = outrider("dead", "replay", "--reason", "gave up", "--limit", "1", "--preview")
        done = outrider("dead", "replay", "--reason", "gave up", "--rate", "20", stdin="y\n")
        due = sorted(row["due_at"] for row in ask(database, "SELECT due_at FROM outrider.queue"))

        assert refused.exit_code == 1
        assert untouched == []
        assert "Send 101 messages again?" in done.stderr
        assert limited.stdout.count("refused: beyond --limit") == 100
        assert done.exit_code == 0
        assert done.stdout.count(" replayed\n") == 101
        assert len(due) == 101
        assert all((later - earlier).total_seconds() >= 1 - 1e-5 for earlier, later in zip(due, due[20:], strict=False))
        assert (due[-1] - due[0]).total_seconds() == pytest.approx(5.0, abs=0.01)

    def test_show_tells_the_message_and_its_story(self, outrider: Outrider, database: str) -> None:
        message = sent(outrider)
        ended(database, message, "dead", "gave up after 8 tries")

        result = outrider("dead", "show", message)

        assert "gave up after 8 tries" in result.stdout
        assert "now dead" in result.stdout


class TestOtherPrograms:
    def test_psql_reaches_the_configured_database(self, tmp_path: Path, database: str) -> None:
        config = str(written(tmp_path, database))

        done = _python("-m", "daemon", "psql", "--config", config, "-Atc", "SELECT 40 + 2")

        assert done.stdout == "42\n", done.stderr

    def test_psql_passes_its_exit_code_on(self, tmp_path: Path, database: str) -> None:
        config = str(written(tmp_path, database))

        assert _python("-m", "daemon", "psql", "--config", config, "-c", "SELEC").returncode == 1

    @pytest.mark.parametrize(
        ("dsn", "bare", "environment"),
        [
            ("postgresql://a@h/d", "postgresql://a@h/d", {}),
            ("postgresql:///d?host=/run", "postgresql:///d?host=/run", {}),
            ("postgresql://a:p%40ss@h:1,i:2/d?x=y", "postgresql://a@h:1,i:2/d?x=y", {"PGPASSWORD": "p@ss"}),
        ],
    )
    def test_a_password_never_becomes_an_argument(self, dsn: str, bare: str, environment: dict[str, str]) -> None:
        assert without_password(dsn) == (bare, environment)

    def test_simulate_says_where_it_listens_and_ends_politely(self, tmp_path: Path) -> None:
        ledger = tmp_path / "ledger.jsonl"
        command = [sys.executable, "-m", "daemon", "simulate", "--port", "0", "--ledger", str(ledger), "--seed", "7"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGTERM)

            assert line.startswith("the simulator listens on http://127.0.0.1:")
            assert process.wait(timeout=10) == 0

    def test_simulate_tells_mistakes_in_its_faults(self, tmp_path: Path) -> None:
        faults = tmp_path / "faults.toml"
        faults.write_text("[errrors]\n")

        result = invoke("simulate", "--port", "0", "--faults", str(faults))

        assert result.exit_code == 1
        assert "errors" in result.stderr


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
