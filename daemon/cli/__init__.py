"""
The command ``outrider``: thin words over SQL and the daemon. What a command can do, a function of the schema does.

One file for each idea; a file imports what it needs when its command runs, so that ``outrider --help`` costs nothing::

    serve.py      run, migrate, psql
    check.py      check: is the configuration sound, and does it fit the database?
    send.py       send: one row, as an application inserts it
    status.py     status, why
    overview.py   what ``status`` shows without an id
    dead.py       dead list, dead show, dead replay
    operate.py    pause, resume, cancel
    practise.py   demo, simulate, bench
    selftest.py   selftest crash

    options.py    what commands have in common     trouble.py   errors in plain words, exit codes
    database.py   the road to the configured Postgres           render.py    tables, times and JSON
    queries.py    every statement of the command line
"""

from __future__ import annotations

from typing import Annotated

import typer

from daemon import __version__
from daemon.cli import check, dead, operate, practise, selftest, send, serve, status
from daemon.cli.options import OPERATING, PRACTISING, examples

app = typer.Typer(
    name="outrider",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "outrider demo       see everything at work, without any configuration",
        "outrider check      is config.toml sound?",
        "outrider run        carry messages until told to stop",
        "outrider status     what is waiting, and how the last hour went",
        "outrider why ID     the whole story of one message",
        title="Begin with",
    ),
)

serve.add_to(app)
check.add_to(app)
send.add_to(app)
status.add_to(app)
app.add_typer(dead.app, name="dead", rich_help_panel=OPERATING)
operate.add_to(app)
practise.add_to(app)
app.add_typer(selftest.app, name="selftest", rich_help_panel=PRACTISING)


def _say_version(wanted: bool) -> None:  # noqa: FBT001 (the form typer asks for)
    if wanted:
        typer.echo(f"outrider {__version__}")
        raise typer.Exit


@app.callback()
def outrider(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Carries messages from a table in Postgres to the phones of the world, and can say where each of them is."""
