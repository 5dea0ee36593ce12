"""What README says is true: its picture of a message's life, and the commands and files it names."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.cli import app
from daemon.core.lifecycle import STEPS, Status

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def drawn() -> list[tuple[str, str]]:
    picture = re.search(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert picture
    return re.findall(r"^ +(\w+) --> (\w+)", picture[1], re.MULTILINE)


def test_every_step_in_the_picture_is_legal() -> None:
    assert drawn()
    for here, there in drawn():
        assert Status(there) in STEPS[Status(here)], f"{here} --> {there}"


def test_every_status_is_in_the_picture() -> None:
    assert {word for step in drawn() for word in step} == set(Status)


def test_every_command_it_shows_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    shown = set(re.findall(r"`?outrider ([a-z]+)", README))
    assert shown
    assert shown <= known


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
