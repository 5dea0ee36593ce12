from __future__ import annotations

from daemon.core.message import LEVELS, Intent


def test_every_intent_has_a_level() -> None:
    assert set(LEVELS) == set(Intent)
    assert set(LEVELS.values()) == {1, 2, 3}


def test_what_people_wait_for_comes_first() -> None:
    assert {intent for intent, level in LEVELS.items() if level == 1} == {"otp", "notifications", "fraud", "security"}
