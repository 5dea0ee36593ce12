"""
Carries messages from an outbox table to the phones of the world.

The road of one message, and the room where each step lives::

    inserted    sql/migrations      the intake: what an INSERT sets in motion
    judged      inspector.py        reads ahead of the claims and ends bad rows early
    claimed     outbox.py           takes rows for lanes with room, writes the claim record
    carried     courier.py          THE HEART: one message, from claim to verdict
    routed      router.py           which sender, at which provider?       decided in core/routing.py
    paced       lanes.py            waits for its turn, in segments/s      decided in core/pacing.py
    permitted   desk.py             may it go, now, to this person?        decided in core/permission.py
    let through gates.py            one breaker per provider               decided in core/breaker.py
    logged      journal.py          written down just before it leaves
    sent        wire/               one exchange, in a dialect of providers/ (or by aiohttp: transport.py)
    judged      courier.py          what the answer means                  decided in core/verdict.py
    settled     ledger.py           the verdict, written back in batches, fenced
    confirmed   callbacks.py        the receipt, hours or milliseconds later, kept by receipts.py

Beside the road: leases.py (who may speak), recovery.py (what a dead daemon had in hand), janitor.py (doubts and other
duty), reconciler.py (receipts that did not come), auditor.py (are all there?), anomalies.py (what ought not to be),
retention.py (what is forgotten), signals.py (cancel, pause, opt-out), observer.py, pulse.py and horizon.py (how it is),
web/ (who may ask), engine.py and app.py (how it hangs together), database.py and pooler.py, settings/, cli/, simulator/
(a provider to practise on), demo/ and selftest/.

Everything under ``core/`` decides and never waits; everything else waits and never decides.
Start reading at :meth:`daemon.courier.Courier.deliver`.
"""

__version__ = "0.1.0"
