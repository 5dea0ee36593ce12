"""The figures: what Prometheus reads of them, and that they stay bounded."""

from __future__ import annotations

import re

import pytest
from prometheus_client import Gauge, Metric
from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import CHILDREN_MAX, Count, Family, Metrics, Timing
from daemon.observer import Observer
from tests.shell.parts import US, Wound, message, settings

# where: two of them; who: one at a time, whoever keeps vacuum from its work.
LABELS = {"service", "level", "provider", "outcome", "status", "sender", "reason", "kind", "where", "who"}


def families(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.render()[0].decode())}


def every(metrics: Metrics) -> list[Count | Gauge | Timing | Family[Count] | Family[Gauge] | Family[Timing]]:
    return [found for found in vars(metrics).values() if isinstance(found, Count | Gauge | Timing | Family)]


@pytest.fixture
def counted() -> Metrics:
    """Metrics of which every child that can exist does."""
    metrics = Metrics()
    for figure in every(metrics):
        child = figure(*(f"a_{label}" for label in figure.labels)) if isinstance(figure, Family) else figure
        if isinstance(child, Timing):
            child.observe(0.02)
        else:
            child.inc()
    return metrics


def test_all_figures_can_be_read_by_prometheus(counted: Metrics) -> None:
    found = families(counted)
    assert len(found) == len(every(counted))
    assert counted.render()[1].startswith("text/plain; version=0.0.4")
    for family in found.values():
        values = [sample.value for sample in family.samples if not sample.name.endswith("_bucket")]
        assert values, family.name
        assert all(value in {1.0, 0.02} for value in values), family.name


def test_names_follow_the_conventions_of_prometheus(counted: Metrics) -> None:
    for family in families(counted).values():
        assert re.fullmatch("outrider_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        match family.type:
            case "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples)
            case "histogram":
                assert family.name.endswith("_seconds")
            case _:
                assert not family.name.endswith("_total")
        assert not re.search("_(ms|milliseconds|minutes|hours|kb|kilobytes)(_|$)", family.name)


def test_no_label_holds_what_is_not_bounded(counted: Metrics) -> None:
    found = {label for family in families(counted).values() for sample in family.samples for label in sample.labels}
    assert found - {"le"} == LABELS


def test_a_label_that_runs_wild_is_counted_under_other() -> None:
    metrics = Metrics()
    for number in range(CHILDREN_MAX + 50):
        metrics.callbacks_refused("twilio", str(number)).inc()
    samples = families(metrics)["outrider_callbacks_refused"].samples
    assert len(samples) == CHILDREN_MAX + 1
    assert {sample.value for sample in samples if sample.labels["provider"] == "other"} == {50.0}


def test_a_child_is_made_once() -> None:
    metrics = Metrics()
    assert metrics.exchanges("twilio", "accepted") is metrics.exchanges("twilio", "accepted")


def test_two_daemons_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.claims.inc()
    assert families(other)["outrider_claims"].samples[0].value == 0


def test_what_a_sampler_no_longer_sees_is_gone() -> None:
    metrics = Metrics()
    metrics.sampled({("otp", "1"): (3, 0.5), ("news", "3"): (1_000, 60.0)})
    metrics.sampled({("news", "3"): (900, 61.0)})
    found = families(metrics)
    assert [(s.labels["service"], s.value) for s in found["outrider_queue_depth"].samples] == [("news", 900.0)]
    assert [(s.labels["service"], s.value) for s in found["outrider_oldest_due_seconds"].samples] == [("news", 61.0)]


def test_a_provider_that_left_the_configuration_leaves_the_figures() -> None:
    metrics = Metrics()
    for provider in ("one", "two"):
        metrics.exchanges(provider, "accepted").inc()
        metrics.exchange(provider).observe(1)
    metrics.signals("pause").inc()
    metrics.forget("provider", "one")
    text = metrics.render()[0].decode()
    assert 'provider="one"' not in text
    assert 'provider="two"' in text
    assert 'kind="pause"' in text


def test_a_sender_that_left_the_configuration_begins_at_nought_when_it_returns() -> None:
    metrics = Metrics()
    observer = Observer(metrics, Wound(), settings())
    observer.left(message(), "sim", US, 1_000.0)
    observer.removed(US)
    assert US not in metrics.render()[0].decode()
    observer.left(message(segments=2), "sim", US, 1_000.0)
    observer.beat(lag_s=0.0)
    (sample,) = families(metrics)["outrider_segments_sent"].samples
    assert (sample.labels["sender"], sample.value) == (US, 2.0)
