"""
The lean transport: the same promise as ``transport.py``, at a quarter of its price.

aiohttp dials (DNS, happy eyeballs, TLS); from then on the connection is ours::

    wire.py        one exchange, and the pool of connections     request.py     a request as the bytes that leave
    connection.py  one connection: an exchange or none           answer.py      an answer out of the bytes that come

Measured: aiohttp's own way from request to answer costs more CPU than everything else the daemon does for a message.
"""

from daemon.wire.wire import Wire

__all__ = ["Wire"]
