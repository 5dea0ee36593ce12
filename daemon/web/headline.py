"""One sentence that answers the question of two in the morning: are my messages going out?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from daemon.watch import BreakerState, SenderState, State
from daemon.web.words import many, per_second, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.watch import Status

Tone: TypeAlias = Literal["good", "quiet", "warn", "bad", "hold"]

URGENT_LATE_S = 30.0  # a login code older than this has lost its use for many
STUCK_S = 60.0  # due rows, and nothing sent for so long


@dataclass(frozen=True, slots=True)
class Headline:
    """
    The answer, and what it rests on.

    good: going out; quiet: nothing to do; warn: in part; bad: no, and nobody wanted that; hold: no, on purpose.
    """

    tone: Tone
    answer: str
    because: str


def headline(status: Status) -> Headline:
    """The first of these that is true, the gravest first."""
    return (
        _not_serving(status) or _stopped_on_purpose(status) or _not_going(status) or _in_part(status) or _going(status)
    )


def _not_serving(status: Status) -> Headline | None:
    match status.state:
        case State.STARTING:
            return Headline("hold", "Starting", "Nothing is sent until the last run is accounted for.")
        case State.DRAINING:
            return Headline("hold", "Stopping", "What is in hand is finished; nothing new is taken.")
        case State.STOPPED:
            return Headline("hold", "Stopped", f"Nothing is sent; {_waiting(status)}.")
        case State.HOLDING | State.SERVING if status.held:
            return Headline("bad", "Nothing is sent", f"{_sentence(status.held)} {_sentence(_waiting(status))}")
        case State.HOLDING:
            return Headline("hold", "Standing by", f"This daemon sends nothing at present; {_waiting(status)}.")
        case State.SERVING:
            return None


def _stopped_on_purpose(status: Status) -> Headline | None:
    for pause in status.pauses:
        if pause.what == "all":
            reason = f" ({pause.reason})" if pause.reason else ""
            return Headline(
                "hold", "Everything is paused", f"An operator stopped all sending{reason}; {_waiting(status)}."
            )
    return None


def _not_going(status: Status) -> Headline | None:
    if not _due(status):
        return None
    if status.providers and all(provider.breaker is BreakerState.OPEN for provider in status.providers):
        return Headline("bad", "Messages are not going out", f"No provider lets us through; {_waiting(status)}.")
    if status.rates.sent.last_60_s == 0 and _oldest(status) >= STUCK_S:
        return Headline(
            "bad", "Messages are not going out", f"None has been accepted for a minute, and the oldest has been due "
            f"for {span(_oldest(status))}; {_waiting(status)}.",
        )  # fmt: skip
    return None


def _in_part(status: Status) -> Headline | None:
    late = [row.oldest_due_age_s for row in status.queue if row.level == 1 and row.oldest_due_age_s is not None]
    pace = f"{per_second(status.rates.sent.last_10_s)} a second are accepted"
    if late and max(late) >= URGENT_LATE_S:
        return Headline(
            "bad", "Urgent messages are late", f"The oldest of level 1 has been due for {span(max(late))}; {pace}."
        )  # fmt: skip
    shut = [provider.name for provider in status.providers if provider.breaker is not BreakerState.CLOSED]
    blocked = [sender.address for sender in status.senders if sender.state is SenderState.BLOCKED]
    paused = [pause.what.replace(":", " ", 1) for pause in status.pauses]
    reasons = [
        *([f"Trouble with {_list(shut)}."] if shut else []),
        *([f"{many(len(blocked), 'sender is', 'senders are')} blocked."] if blocked else []),
        *([f"Paused: {_list(paused)}."] if paused else []),
    ]
    if not reasons:
        return None
    return Headline("warn", "Messages are going out in part", " ".join([*reasons, _sentence(pace)]))


def _going(status: Status) -> Headline:
    sent = status.rates.sent.last_10_s
    if not _due(status) and sent == 0:
        scheduled = sum(row.messages for row in status.queue)
        later = (
            f"{many(scheduled, 'message has', 'messages have')} a later hour." if scheduled else "Nothing is waiting."
        )
        return Headline("quiet", "All is quiet", f"Every message that was due has gone out. {later}")
    if not _due(status):
        return Headline("good", "Messages are going out", f"{per_second(sent)} a second are accepted; none is waiting.")
    return Headline(
        "good", "Messages are going out", f"{per_second(sent)} a second are accepted; {_waiting(status)}, "
        f"the oldest due for {span(_oldest(status))}.",
    )  # fmt: skip


def _due(status: Status) -> bool:
    return any(row.messages and row.oldest_due_age_s is not None for row in status.queue)


def _oldest(status: Status) -> float:
    return max((row.oldest_due_age_s for row in status.queue if row.oldest_due_age_s is not None), default=0.0)


def _waiting(status: Status) -> str:
    return many(sum(row.messages for row in status.queue), "message waits", "messages wait")


def _list(words: Sequence[str]) -> str:
    if len(words) > 3:
        words = [*words[:2], f"{len(words) - 2} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
