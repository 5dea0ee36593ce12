from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.core import breaker as room
from daemon.core.breaker import (
    Breaker,
    Closed,
    HalfOpen,
    Open,
    Permit,
    Sign,
    Temper,
    closed,
    force_open,
    knock,
    learn,
    quota,
    sign_of,
)
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain, Unreachable

T = Temper()


def passed(breaker: Breaker, now: float, level: int = 3) -> tuple[Breaker, Permit]:
    breaker, permit = knock(breaker, level=level, now=now, temper=T, roll=0.5)
    assert permit is not None
    return breaker, permit


def told(breaker: Breaker, sign: Sign, now: float = 0.0, times: int = 1) -> Breaker:
    """Knock and learn, *times* over."""
    for _ in range(times):
        breaker, permit = passed(breaker, now)
        breaker = learn(breaker, permit, sign, now=now, temper=T, roll=0.5)
    return breaker


def half_open(now: float = 100.0) -> HalfOpen:
    tripped = told(closed(), Sign.UNCONNECTED, now - 60, times=5)
    breaker, permit = passed(tripped, now)
    breaker = learn(breaker, permit, Sign.IRRELEVANT, now=now, temper=T, roll=0.5)
    assert isinstance(breaker, HalfOpen)
    return breaker


def test_a_healthy_provider_has_no_quota_and_everybody_passes() -> None:
    breaker = told(closed(), Sign.GOOD, times=100)
    assert isinstance(breaker, Closed)
    assert quota(breaker, now=0, temper=T) is None
    assert knock(breaker, level=1, now=0, temper=T, roll=0)[1] is not None


def test_five_unsent_in_a_row_trip_it() -> None:
    breaker = told(closed(), Sign.UNCONNECTED, times=4)
    assert isinstance(breaker, Closed)
    assert told(breaker, Sign.UNCONNECTED) == Open(Permit(2), until=5.0)


@pytest.mark.parametrize("sign", [Sign.GOOD, Sign.SLOW, Sign.FAILED])
def test_a_connection_ends_the_row(sign: Sign) -> None:
    breaker = told(closed(), Sign.UNCONNECTED, times=4)
    assert isinstance(told(told(breaker, sign), Sign.UNCONNECTED, times=4), Closed)


@pytest.mark.parametrize(("sign", "of_20"), [(Sign.FAILED, 10), (Sign.SLOW, 16)])
def test_too_large_a_share_trips_it(sign: Sign, of_20: int) -> None:
    almost = told(told(closed(), Sign.GOOD, times=20 - of_20), sign, times=of_20 - 1)
    assert isinstance(almost, Closed)
    assert isinstance(told(almost, sign), Open)
    fewer = told(told(closed(), Sign.GOOD, times=21 - of_20), sign, times=of_20 - 1)
    assert isinstance(fewer, Closed)


def test_fewer_than_twenty_calls_prove_nothing() -> None:
    assert isinstance(told(closed(), Sign.FAILED, times=19), Closed)
    assert isinstance(told(closed(), Sign.FAILED, times=20), Open)


@pytest.mark.parametrize("sign", [Sign.SLOW, Sign.FAILED])
def test_twenty_in_a_row_trip_it_however_good_it_was_before(sign: Sign) -> None:
    almost = told(told(closed(), Sign.GOOD, times=2_000), sign, times=19)
    assert isinstance(almost, Closed)
    assert isinstance(told(almost, sign), Open)
    assert isinstance(told(told(almost, Sign.GOOD), sign, times=19), Closed)


def test_what_is_ten_seconds_old_is_forgotten() -> None:
    assert isinstance(told(told(closed(), Sign.FAILED, 0.0, times=19), Sign.FAILED, 10.0), Closed)
    assert isinstance(told(told(closed(), Sign.FAILED, 0.5, times=19), Sign.FAILED, 9.9), Open)


@given(st.lists(st.tuples(st.sampled_from([Sign.GOOD, Sign.SLOW, Sign.FAILED]), st.floats(0, 4)), max_size=60))
def test_the_window_is_the_last_ten_seconds_exactly(news: list[tuple[Sign, float]]) -> None:
    window, now, all_news = room.Window(), 0.0, []
    for sign, after in news:
        now += after
        window.add(sign, now)
        all_news.append((sign, int(now)))
        recent = [one for one, second in all_news if second > int(now) - room.WINDOW_S]
        assert window.calls == len(recent)
        assert window.failed == recent.count(Sign.FAILED)
        assert window.slow == recent.count(Sign.SLOW)
        assert window.bad == len(recent) - max((k + 1 for k, one in enumerate(recent) if one is Sign.GOOD), default=0)


def test_a_clock_that_goes_back_does_no_harm() -> None:
    window = room.Window()
    for now in (100.0, 3.0, 100.5):
        window.add(Sign.FAILED, now)
    assert window.calls == window.failed == 3


@given(st.integers(0, 60), st.lists(st.sampled_from([Sign.IRRELEVANT]), max_size=50))
def test_what_says_nothing_about_the_provider_never_counts(good: int, news: list[Sign]) -> None:
    breaker = told(closed(), Sign.GOOD, times=good)
    for sign in news:
        breaker = told(breaker, sign)
    assert isinstance(breaker, Closed)
    assert breaker.window.calls == good


def test_nobody_passes_while_it_is_open() -> None:
    breaker = told(closed(), Sign.UNCONNECTED, times=5)
    for level in (1, 2, 3):
        assert knock(breaker, level=level, now=4.99, temper=T, roll=0.5) == (breaker, None)
    assert quota(breaker, now=4.99, temper=T) == 0
    assert quota(breaker, now=5.0, temper=T) == 2


@given(st.floats(0, 1, exclude_max=True))
def test_rests_grow_to_seven_seconds_and_a_half_give_or_take_a_fifth(roll: float) -> None:
    breaker, now, rests = told(closed(), Sign.UNCONNECTED, times=5), 5.0, []
    for _ in range(6):
        for _ in range(T.reopens_after):
            breaker, permit = passed(breaker, now)
            breaker = learn(breaker, permit, Sign.FAILED, now=now, temper=T, roll=roll)
        assert isinstance(breaker, Open)
        rests.append(breaker.until - now)
        now = breaker.until
    for rest, ideal in zip(rests, [7.5] * 6, strict=True):
        assert ideal * 0.8 - 1e-9 <= rest <= ideal * 1.2 + 1e-9


def test_two_then_three_then_five_then_ten_may_try_and_ten_good_ones_close_it() -> None:
    breaker: Breaker = half_open()
    for good in range(10):
        assert quota(breaker, now=100.0, temper=T) == (2 if not good else 3 if good < 3 else 5 if good < 8 else 10)
        breaker = told(breaker, Sign.GOOD, 100.0)
    assert isinstance(breaker, Closed)
    assert breaker.window.calls == 0


def test_one_bad_probe_may_be_an_accident_two_are_not() -> None:
    breaker = told(half_open(), Sign.SLOW, 100.0)
    assert isinstance(breaker, HalfOpen)
    assert quota(breaker, now=100.0, temper=T) == 1  # of three into a dead provider the third would tell nothing
    reopened = told(breaker, Sign.FAILED, 100.0)
    assert isinstance(reopened, Open)
    assert reopened.trips == 2


def test_level_1_leaves_the_probing_to_others() -> None:
    breaker = half_open()
    assert knock(breaker, level=1, now=101.9, temper=T, roll=0.5)[1] is None
    assert knock(breaker, level=2, now=101.9, temper=T, roll=0.5)[1] is not None


def test_level_1_passes_once_a_handful_came_back_well() -> None:
    breaker = told(half_open(), Sign.GOOD, 100.0, times=3)
    assert knock(breaker, level=1, now=100.0, temper=T, roll=0.5)[1] is not None


def test_anyone_may_try_when_no_low_priority_comes_by() -> None:
    breaker = half_open()
    assert knock(breaker, level=1, now=102.0, temper=T, roll=0.5)[1] is not None


def test_probes_that_never_report_are_forgotten() -> None:
    breaker: Breaker = half_open()
    lost = []
    for _ in range(2):
        breaker, permit = passed(breaker, 100.0)
        lost.append(permit)
    assert knock(breaker, level=3, now=129.9, temper=T, roll=0.5)[1] is None
    assert quota(breaker, now=129.9, temper=T) == 0
    assert quota(breaker, now=130.0, temper=T) == 2
    breaker, permit = passed(breaker, 130.0, level=1)
    assert permit not in lost
    assert learn(breaker, lost[0], Sign.FAILED, now=131.0, temper=T, roll=0.5) is breaker


@pytest.mark.parametrize("sign", list(Sign))
def test_an_answer_from_before_the_trip_changes_nothing(sign: Sign) -> None:
    breaker, early = passed(closed(), 0.0)
    tripped = told(breaker, Sign.UNCONNECTED, times=5)
    trying, _ = passed(tripped, 5.0)
    for later in (tripped, trying):
        assert learn(later, early, sign, now=6.0, temper=T, roll=0.5) is later


def test_a_refusal_of_the_account_opens_it_until_then() -> None:
    breaker = force_open(closed(), 30.0, "20003: no such account")
    assert breaker == Open(Permit(2), 30.0, 1, "20003: no such account")
    assert knock(breaker, level=1, now=29.9, temper=T, roll=0.5)[1] is None
    assert knock(breaker, level=3, now=30.0, temper=T, roll=0.5)[1] is not None
    assert force_open(told(half_open(), Sign.SLOW, 100.0), 200.0) == Open(Permit(4), 200.0, 1)
    assert learn(breaker, Permit(2), Sign.GOOD, now=1.0, temper=T, roll=0.5) is breaker


@pytest.mark.parametrize(
    ("outcome", "sign"),
    [
        (Accepted("SM1"), Sign.GOOD),
        (Unreachable("refused"), Sign.UNCONNECTED),
        (Uncertain("no answer"), Sign.FAILED),
        (Throttled(None, "20429", ""), Sign.IRRELEVANT),
        (Rejected(Fault.ACCOUNT, "20003", ""), Sign.FAILED),
        (Rejected(Fault.TRANSIENT, "503", ""), Sign.FAILED),
        (Rejected(Fault.RECIPIENT, "21211", ""), Sign.IRRELEVANT),
        (Rejected(Fault.CONTENT, "21617", ""), Sign.IRRELEVANT),
        (Rejected(Fault.OPTED_OUT, "21610", ""), Sign.IRRELEVANT),
        (Rejected(Fault.ROUTE, "21612", ""), Sign.IRRELEVANT),
        (Rejected(Fault.SENDER, "21606", ""), Sign.IRRELEVANT),
        (Rejected(Fault.UNKNOWN, "99999", ""), Sign.IRRELEVANT),
    ],
)
def test_only_the_providers_own_trouble_counts(outcome: Outcome, sign: Sign) -> None:
    assert sign_of(outcome, 0.1, 2.0) is sign


def test_an_answer_that_takes_far_too_long_is_slow() -> None:
    assert sign_of(Accepted("SM1"), 2.0, 2.0) is Sign.SLOW


@dataclass
class Outage:
    """
    What one outage costs, in virtual time, at 50 messages a second of *levels*: a call takes 50 ms; while it lasts a
    call is refused at once, answered with an error, or hangs for 15 s and is called slow by a look each second.
    """

    seconds: float
    sign: Sign
    seed: int
    levels: tuple[int, ...] = (1, 1, 2, 3)
    wires: int = 64  # calls that can be under way
    calls: int = 0  # begun while it lasted
    opened_s: float | None = None  # after its beginning
    closed_s: float | None = None  # after its end
    flying: list[tuple[float, float, Permit, Sign]] = field(default_factory=list)

    def run(self) -> Outage:
        dice, self.breaker = random.Random(self.seed), closed()
        self.begin = 20.0 + dice.random()  # of traffic without trouble
        for tick in range(50 * int(self.begin + self.seconds + 60)):
            now = tick / 50
            self.land(now, dice)
            if self.calls and self.opened_s is None and isinstance(self.breaker, Open):
                self.opened_s = now - self.begin
            if now > self.begin + self.seconds and isinstance(self.breaker, Closed):
                self.closed_s = now - self.begin - self.seconds
                break
            if len(self.flying) < self.wires and quota(self.breaker, now=now, temper=T) != 0:
                self.send(dice.choice(self.levels), now, dice)
        return self

    def send(self, level: int, now: float, dice: random.Random) -> None:
        self.breaker, permit = knock(self.breaker, level=level, now=now, temper=T, roll=dice.random())
        if permit is None:
            return
        ill = self.begin <= now < self.begin + self.seconds
        self.calls += ill
        sign = self.sign if ill else Sign.GOOD
        took_s = 15.0 if sign is Sign.SLOW else 0.0 if sign is Sign.UNCONNECTED else 0.05
        self.flying.append((now + took_s, now, permit, sign))

    def land(self, now: float, dice: random.Random) -> None:
        for flight in self.flying[:]:
            at, since, permit, sign = flight
            hangs = sign is Sign.SLOW and now == int(now) and now - 1 <= since + 2.0 < now  # the look of that second
            if at <= now or hangs:
                told_of = Sign.FAILED if sign is Sign.SLOW and at <= now else sign
                self.breaker = learn(self.breaker, permit, told_of, now=now, temper=T, roll=dice.random())
            if at <= now:
                self.flying.remove(flight)


TROUBLES = (Sign.UNCONNECTED, Sign.FAILED, Sign.SLOW)


@pytest.mark.parametrize("levels", [(1, 1, 2, 3), (3,), (1,)], ids=["mixed", "bulk", "codes"])
@pytest.mark.parametrize("sign", TROUBLES)
@pytest.mark.parametrize("seed", range(3))
def test_ten_minutes_of_outage_cost_fewer_than_200_calls(seed: int, sign: Sign, levels: tuple[int, ...]) -> None:
    outage = Outage(600.0, sign, seed, levels).run()
    assert outage.calls < 200
    assert outage.opened_s is not None
    assert outage.opened_s <= (4.0 if sign is Sign.SLOW else 2.0)  # what hangs is called slow after two seconds
    assert outage.closed_s is not None
    assert outage.closed_s <= 15.0


@given(
    st.floats(0, math.log(3_600)).map(math.exp),
    st.sampled_from(TROUBLES),
    st.integers(0, 2**32),
    st.sampled_from([(1, 1, 2, 3), (3,), (1,)]),
)
@settings(max_examples=30)
def test_however_long_it_lasted_it_is_closed_within_15_s_of_the_end(
    seconds: float, sign: Sign, seed: int, levels: tuple[int, ...]
) -> None:
    closed_s = Outage(seconds, sign, seed, levels).run().closed_s
    assert closed_s is not None
    assert closed_s <= 15.0


class AnyLife(RuleBasedStateMachine):
    """Whatever comes, in whatever order: the promises hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker: Breaker = closed()
        self.out: list[Permit] = []

    @rule(level=st.sampled_from([1, 2, 3]), roll=st.floats(0, 1, exclude_max=True), times=st.integers(1, 12))
    def somebody_knocks(self, level: int, roll: float, times: int) -> None:
        for _ in range(times):
            free = quota(self.breaker, now=self.now, temper=T)
            self.breaker, permit = knock(self.breaker, level=level, now=self.now, temper=T, roll=roll)
            if permit is not None:
                assert free is None or free > 0
                self.out.append(permit)
            elif level > 1:
                assert free == 0

    @precondition(lambda self: self.out)
    @rule(data=st.data(), sign=st.sampled_from(list(Sign)), roll=st.floats(0, 1, exclude_max=True))
    def somebody_returns(self, data: st.DataObject, sign: Sign, roll: float) -> None:
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.breaker
        self.breaker = learn(before, permit, sign, now=self.now, temper=T, roll=roll)
        if permit != before.epoch:
            assert self.breaker is before

    @rule(sign=st.sampled_from(list(Sign)))
    def all_return(self, sign: Sign) -> None:
        for permit in self.out:
            self.breaker = learn(self.breaker, permit, sign, now=self.now, temper=T, roll=0.5)
        self.out.clear()

    @rule(seconds=st.sampled_from([0.1, 1, 5, 15, 30, 80]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_account_is_refused(self) -> None:
        assume(not isinstance(self.breaker, Open))
        self.breaker = force_open(self.breaker, self.now + 30, "refused")

    @invariant()
    def never_more_probes_out_than_permitted(self) -> None:
        if isinstance(self.breaker, HalfOpen):
            out = self.out.count(self.breaker.epoch)
            assert out == self.breaker.out <= max(T.probes)
            assert self.breaker.good >= 8 or out <= 5
            assert self.breaker.good >= 3 or out <= 3

    @invariant()
    def somebody_always_passes_in_the_end(self) -> None:
        later = self.now + T.open_max_s * (1 + T.jitter) + T.lost_s + T.rest_s
        for level in (1, 3):
            breaker, permit = knock(self.breaker, level=level, now=later, temper=T, roll=0.5)
            if permit is None:  # a level-1 message that came first leaves the probing to others for a moment
                breaker, permit = knock(breaker, level=3, now=later, temper=T, roll=0.5)
            assert permit is not None
        opened, permit = knock(self.breaker, level=1, now=later, temper=T, roll=0.5)
        assert permit is not None or knock(opened, level=1, now=later + T.rest_s, temper=T, roll=0.5)[1] is not None


TestAnyLife = AnyLife.TestCase
