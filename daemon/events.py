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
    "daemon.ready": ("instance", "operator"),  # operator: the port of the pages
    "daemon.draining": ("in_hand",),
    "daemon.refused": ("reason",),  # it could not begin
    "daemon.failed": ("reasons",),  # it did not end well
    "service.failed": ("service",),  # one part of the daemon fell: the others drain
    "library.spoke": ("library", "said"),  # a dependency's own words
    # the configuration, after SIGHUP
    "settings.reloaded": ("changes", "after_restart"),  # one line per change
    "settings.refused": ("mistakes",),  # the old ones stay
    # the database, leases and what stands in them
    "database.confirmed": (),  # it is the one this state folder belongs to
    "database.strange": ("reason",),  # it is not: nothing is sent until a person has spoken
    "database.unreachable": ("error", "hint"),
    "database.lost": ("line", "error"),
    "database.full": ("line", "error", "hint"),  # Postgres's disk: said once for each line
    "database.roomy": ("line",),  # it is not any more
    "vacuum.held": ("who", "age_s", "hint"),  # an old transaction of somebody's keeps dead rows
    "schema.migrated": ("step",),
    "database.refused": ("reason",),  # a schema outside the range this version knows; a pooler nobody told of
    "database.unheard": ("hint",),  # behind a transaction pooler without a direct address: no NOTIFY
    "lease.taken": ("group", "epoch"),
    "lease.given": ("group", "epoch"),  # back: it is another daemon's share, or we are stopping
    "lease.lost": ("group", "epoch"),
    "leases.kept": ("reason",),  # could not be given back on the way out: they run out by themselves
    "signal.heard": ("kind", "message_id", "what"),
    # messages; never one line per message above debug, except for our own faults
    "claims.reconciled": ("group", "free"),  # and how many went which way
    "journal.failed": ("error", "hint"),  # the dispatch log cannot be written: what would leave now is held
    "journal.mended": (),
    "courier.stumbled": ("message_id",),  # our own fault: the message is parked
    "rows.refused": ("count", "first_reason"),  # the inspector ended rows early
    "anomaly.found": ("kind", "message_id", "reference", "reason", "count"),  # one line a minute for each kind
    "conservation.broken": ("difference", "message_ids"),  # messages that are nowhere: see outrider.missing()
    "weeks.dropped": ("weeks",),  # retention: everything in them was past its time
    "retention.interrupted": ("error",),  # a piece was not done, and is tried again
    # providers
    "gate.changed": ("provider", "was", "now", "reason"),
    "sender.rested": ("sender", "provider", "code", "reason"),  # a provider will not have this sender for now
    # the simulator
    "simulator.closed": ("lift",),
    "simulator.faults_changed": (),
    "simulator.faults_refused": ("reason",),
}
