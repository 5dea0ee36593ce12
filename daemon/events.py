"""
Every event the log can say, with the fields it may carry: names and fields are API, people build alarms on them.

Past tense, noun first. ``error`` and ``trace`` come with every exception and are not listed. A test holds the code to
this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

EVENTS: Mapping[str, tuple[str, ...]] = {
    # the process
    "library.spoke": ("library", "said"),  # a dependency's own words
    "service.failed": ("service",),  # one part of the daemon fell: the others drain
    # the configuration
    "settings.changed": ("difference",),  # SIGHUP: one line per change
    "settings.refused": ("mistakes",),  # SIGHUP: the old ones stay
    # the database, leases and what stands in them
    "database.lost": ("line", "error"),
    "lease.taken": ("group", "epoch"),
    "lease.lost": ("group", "epoch"),
    "signal.heard": ("kind", "message_id", "what"),
    # messages; never one line per message above debug, except for our own faults
    "claims.reconciled": ("group",),
    "courier.stumbled": ("message_id",),  # our own fault: the message is parked
    "rows.refused": ("count", "first_reason"),  # the inspector ended rows early
    # providers
    "gate.changed": ("provider", "was", "reason"),
    # the simulator
    "simulator.closed": ("lift",),
    "simulator.faults_changed": (),
    "simulator.faults_refused": ("reason",),
}
