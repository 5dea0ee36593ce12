"""What the commands have in common: where the configuration is, and how examples are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from daemon.cli.trouble import BAD_CONFIGURATION, Trouble

# Panels of `outrider --help`, in the order of their first command.
RUNNING, MESSAGES, OPERATING, PRACTISING = "Running", "Messages", "Operating", "Practising and measuring"

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # what we do not know is for the other program

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Default: ./config.toml, then /etc/outrider/config.toml."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words.")]


def find_config(told: Path | None) -> Path:
    """The configuration's place: the one *told*, or the first of ``settings.PLACES`` that exists. Raises Trouble."""
    from daemon.settings import PLACES

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
    """An epilog for a command's help (markdown), one line for each example."""
    return "\n".join([f"**{title}**\n\n```", *lines, "```"])
