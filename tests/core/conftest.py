"""What the tests of the core share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from daemon.core.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN = Message(
    id=UUID(int=7),
    attempt=1,
    spent=0,
    lane="default",
    level=3,
    claim=UUID(int=8),
    tenant="",
    recipient="+33612345678",
    channel="sms",
    service="default",
    sender=None,
    body="hello",
    template=None,
    variables=None,
    media=(),
    intent="marketing",
    first_due=0.0,
    due_at=0.0,
    expires_at=None,
    order_key=None,
    on_ambiguous=None,
)


@pytest.fixture(scope="session")
def a_message() -> Callable[..., Message]:
    """An ordinary message, with the changes named."""
    return lambda **changes: replace(_PLAIN, **changes)
