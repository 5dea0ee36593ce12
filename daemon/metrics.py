"""
The figures Prometheus reads. One :class:`Metrics` per daemon, handed to whoever counts; nothing is global.

Labels are words out of the configuration or out of our own vocabulary, never anybody's number; should one run wild,
what comes after the first thousand is counted under ``other``. A child is looked up in a plain dict and kept.

Eight of them are told of every message, so counters and histograms are plain numbers here (0.1 and 0.4 µs, where the
library's take locks: 0.8 and 1.8), shown through the library's own families when somebody reads.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from daemon.horizon import Culprit

NAMESPACE = "outrider"
CHILDREN_MAX = 1_000  # label combinations of one metric

# A login code should take milliseconds and a campaign may take hours: both ends are told apart.
WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
QUEUES_S = (0.005, 0.025, 0.1, 0.5, 1, 5, 30, 60, 300, 1_800, 7_200, 36_000)  # 10 h is a sender's queue window
EXCHANGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15)  # 15 s is the deadline of an exchange
RECEIPTS_S = (0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200, 36_000, 259_200)  # after 72 h none is waited for
LAGS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Count:
    """Goes up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, many: float = 1) -> None:
        """*many* more."""
        self.value += many


class Timing:
    """How long things took, in buckets up to each of *bounds* (seconds) and one beyond."""

    __slots__ = ("bounds", "counts", "total_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def observe(self, *seconds: float) -> None:
        """Things took *seconds*, each."""
        counts, bounds = self.counts, self.bounds
        for one in seconds:
            counts[bisect_left(bounds, one)] += 1
        self.total_s += sum(seconds)


Child = TypeVar("Child", Count, Timing, Gauge)


class Family(Generic[Child]):
    """One metric with labels, and its children by the labels' values."""

    __slots__ = ("_born", "_gone", "children", "labels")

    def __init__(
        self, labels: tuple[str, ...], born: Callable[..., Child], gone: Callable[..., object] | None = None
    ) -> None:
        self.labels = labels
        self.children: dict[tuple[str, ...], Child] = {}
        self._born: Callable[..., Child] = born
        self._gone = gone

    def __call__(self, *values: str) -> Child:
        """The child of *values*, in the order of ``labels``; made when first asked for."""
        try:
            return self.children[values]
        except KeyError:
            return self._make(values)

    def keep(self, wanted: set[tuple[str, ...]]) -> None:
        """Drop every child that is not *wanted*: what a sampler did not see any more."""
        for values in self.children.keys() - wanted:
            del self.children[values]
            if self._gone is not None:
                self._gone(*values)

    def forget(self, label: str, value: str) -> None:
        """Drop every child whose *label* is *value*: a provider or sender that left the configuration."""
        if label in self.labels:
            at = self.labels.index(label)
            self.keep({values for values in self.children if values[at] != value})

    def _make(self, values: tuple[str, ...]) -> Child:
        if len(self.children) >= CHILDREN_MAX:
            values = ("other",) * len(self.labels)
        if values not in self.children:
            self.children[values] = self._born(*values)
        return self.children[values]


class Metrics:
    """Every figure of one daemon."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counts: list[tuple[str, str, Family[Count]]] = []
        self._timings: list[tuple[str, str, Family[Timing]]] = []
        self._gauged: list[Family[Gauge]] = []
        self._count()
        self._time()
        self._gauge()
        self.registry.register(self)

    def _count(self) -> None:
        self.claims = self._counter("claims_total", "Claims that brought messages.")
        self.messages_claimed = self._counters("messages_claimed_total", "Messages claimed.", "service", "level")
        self.exchanges = self._counters("exchanges_total", "Exchanges, by what became of them.", "provider", "outcome")
        self.verdicts = self._counters("verdicts_total", "Verdicts written, by where they left a message.", "status")
        self.verdicts_fenced = self._counter("verdicts_fenced_total", "Verdicts refused: the lease had moved on.")
        self.segments_sent = self._counters("segments_sent_total", "Segments put on the wire.", "provider", "sender")
        self.receipts = self._counters("receipts_total", "Receipts taken in.", "provider", "status")
        self.callbacks_refused = self._counters(
            "callbacks_refused_total", "Callbacks not believed or not taken in.", "provider", "reason"
        )
        self.signals = self._counters("signals_total", "Signals heard from SQL functions.", "kind")
        self.inspector_refused = self._counters(
            "inspector_refused_total", "Messages the inspector ended before their turn.", "status"
        )
        self.anomalies = self._counters("anomalies_total", "What ought not to be, as it was found.", "kind")
        self.overdue_asked = self._counters(
            "overdue_asked_total", "Messages without a receipt that a provider was asked for.", "provider", "outcome"
        )
        self.unconfirmed = self._counter("unconfirmed_total", "Messages given up waiting for a receipt after 72 hours.")
        self.doubts_resolved = self._counters("doubts_resolved_total", "Ambiguous messages settled.", "status")

    def _time(self) -> None:
        self.claim = self._histogram("claim_seconds", "One claim, those that bring nothing included.", WAITS_S)
        self.queue_wait = self._histograms("queue_wait_seconds", "From due to claimed.", QUEUES_S, "level")
        self.turn_wait = self._histograms("turn_wait_seconds", "From claimed to its turn.", WAITS_S, "level")
        self.exchange = self._histograms("exchange_seconds", "One exchange.", EXCHANGES_S, "provider")
        self.commit_to_provider = self._histograms(
            "commit_to_provider_seconds",
            "From the application's commit (or due time) to the first byte.",
            WAITS_S,
            "level",
        )
        self.settle = self._histogram("settle_seconds", "One batch of verdicts, from first in to written.", WAITS_S)
        self.receipt_delay = self._histograms(
            "receipt_delay_seconds", "From accepted to its final receipt.", RECEIPTS_S, "provider"
        )
        self.loop_lag = self._histogram("loop_lag_seconds", "How late the event loop wakes.", LAGS_S)

    def _gauge(self) -> None:
        self.in_hand = self._gauges("in_hand", "Messages in memory, claimed and not settled.", "level")
        self.in_flight = self._gauges("in_flight", "Exchanges under way.", "provider")
        self.breaker_state = self._gauges("breaker_state", "0 closed, 1 half open, 2 open.", "provider")
        self.queue_depth = self._gauges("queue_depth", "Unfinished messages.", "service", "level")
        self.oldest_due = self._gauges(
            "oldest_due_seconds", "Age of the oldest message that is due.", "service", "level"
        )
        self.database_up = Gauge("database_up", "1 when Postgres answers.", namespace=NAMESPACE, registry=self.registry)
        self.disk_full = self._gauges("disk_full", "1 while there is no room: database, or state folder.", "where")
        self.vacuum_held = self._gauges("vacuum_held_seconds", "For how long who has kept vacuum from its work.", "who")
        self.conservation_difference = Gauge(
            "conservation_difference", "Messages that are neither in the queue nor ended: nought, or some are lost.",
            namespace=NAMESPACE, registry=self.registry,
        )  # fmt: skip
        self.receipts_parked = Gauge(
            "receipts_parked", "Receipts whose message nobody knows yet.", namespace=NAMESPACE, registry=self.registry
        )
        self.tasks = Gauge(
            "tasks", "Tasks of the event loop, couriers at rest left out.", namespace=NAMESPACE, registry=self.registry
        )
        self.dispatch_log_size = Gauge(
            "dispatch_log_bytes", "Size of the dispatch log.", namespace=NAMESPACE, registry=self.registry
        )

    def sampled(self, queue: Mapping[tuple[str, str], tuple[int, float]]) -> None:
        """What a look at the queue found: depth and age in seconds of the oldest due row, by service and level."""
        for values, (depth, age_s) in queue.items():
            self.queue_depth(*values).set(depth)
            self.oldest_due(*values).set(age_s)
        self.queue_depth.keep(set(queue))
        self.oldest_due.keep(set(queue))

    def holding(self, culprit: Culprit | None) -> None:
        """Who keeps vacuum from its work now; nobody else does."""
        self.vacuum_held.keep({(culprit.who,)} if culprit else set())
        if culprit:
            self.vacuum_held(culprit.who).set(culprit.age_s)

    def forget(self, label: str, value: str) -> None:
        """Drop every series of a provider or sender that left the configuration."""
        for _, _, counts in self._counts:
            counts.forget(label, value)
        for _, _, timings in self._timings:
            timings.forget(label, value)
        for gauges in self._gauged:
            gauges.forget(label, value)

    def render(self) -> tuple[bytes, str]:
        """All figures as Prometheus reads them, and their content type."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterator[Metric]:
        """Counters and histograms, for the library to write down."""
        for name, told, counts in self._counts:
            counter = CounterMetricFamily(f"{NAMESPACE}_{name}", told, labels=counts.labels)
            for values, count in counts.children.items():
                counter.add_metric(values, count.value)
            yield counter
        for name, told, timings in self._timings:
            histogram = HistogramMetricFamily(f"{NAMESPACE}_{name}", told, labels=timings.labels)
            for values, timing in timings.children.items():
                histogram.add_metric(values, _buckets(timing), timing.total_s)
            yield histogram

    def _counter(self, name: str, told: str) -> Count:
        return self._counters(name, told)()

    def _counters(self, name: str, told: str, *labels: str) -> Family[Count]:
        family = Family(labels, lambda *_values: Count())
        self._counts.append((name, told, family))
        return family

    def _gauges(self, name: str, told: str, *labels: str) -> Family[Gauge]:
        gauge = Gauge(name, told, labels, namespace=NAMESPACE, registry=self.registry)
        family = Family(labels, gauge.labels, gauge.remove)
        self._gauged.append(family)
        return family

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...]) -> Timing:
        return self._histograms(name, told, buckets)()

    def _histograms(self, name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Family[Timing]:
        family = Family(labels, lambda *_values: Timing(buckets))
        self._timings.append((name, told, family))
        return family


def _buckets(timing: Timing) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in timing.bounds), "+Inf"]
    return list(zip(bounds, accumulate(timing.counts), strict=True))
