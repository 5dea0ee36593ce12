"""What the commands have in common: where the configuration is, and how examples are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from daemon.cli.trouble import BAD_CONFIGURATION, Trouble

PLACES = (Path("config.toml"), Path("/etc/outrider/config.toml"))

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration [default: ./config.toml, then /etc/outrider/config.toml]"),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words.")]


def find_config(told: Path | None) -> Path:
    """The configuration's place: the one *told*, or the first of :data:`PLACES` that exists. Raises Trouble."""
    if told is not None:
        if told.is_file():
            return told
        raise Trouble(f"there is no configuration at {told}", code=BAD_CONFIGURATION)
    for place in PLACES:
        if place.is_file():
            return place
    raise Trouble(
        "no configuration found: looked for " + " and ".join(map(str, PLACES)),
        "give one with --config FILE, or try `outrider demo`, which needs none",
        code=BAD_CONFIGURATION,
    )


def examples(*lines: str, title: str = "Examples") -> str:
    """An epilog for a command's help, one line for each example."""
    return "\n\n".join([f"[bold]{title}[/bold]", *(line.replace("[", r"\[") for line in lines)])
