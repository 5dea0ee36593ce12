"""
Celery with Redis, what most Python programmers reach for: its worker with gevent, posting with requests.

Its broker keeps the messages; nothing is written to a database, before or after. Redis's own processor time is not
counted. The worker posts the same bytes over a pool of connections of its own.

Run as ``python -m bench.peers.celery URL MESSAGES IN_FLIGHT DSN``; prints one JSON object.
"""

from __future__ import annotations

import warnings

if __name__ == "__main__":  # before anybody has a socket
    from gevent import monkey  # type: ignore[import-not-found,unused-ignore]

    warnings.simplefilter("ignore")  # that ssl was here before it, which plain HTTP does not mind; that we are root
    monkey.patch_all()

import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import spent
from bench.messages import requests

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def redis() -> Iterator[str]:
    """A Redis of our own on a socket: where it is."""
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        socket = Path(folder) / "redis.sock"
        command = f"redis-server --port 0 --unixsocket {socket} --dir {folder}"
        with subprocess.Popen(command.split(), stdout=subprocess.DEVNULL) as server:
            try:
                while not socket.exists():
                    time.sleep(0.01)
                yield f"redis+socket://{socket}"
            finally:
                server.terminate()


def run(url: str, messages: int, in_flight: int) -> None:
    """Enqueue *messages*, then post them all."""
    from celery import Celery, worker  # type: ignore[import-not-found,unused-ignore]
    from requests import Session  # type: ignore[import-untyped,unused-ignore]
    from requests.adapters import HTTPAdapter  # type: ignore[import-untyped,unused-ignore]

    ready = requests(url, messages)
    session, done = Session(), []
    session.mount("http://", HTTPAdapter(pool_maxsize=in_flight))

    with redis() as broker:
        app = Celery("bench", broker=broker)
        app.conf.update(task_ignore_result=True, worker_redirect_stdouts=False)

        @app.task  # type: ignore[untyped-decorator,unused-ignore]
        def send(body: str) -> None:
            reply = session.post(ready[0].url, data=body.encode(), headers=ready[0].headers, allow_redirects=False)
            if reply.status_code != 201:
                raise SystemExit("the sink said no")
            reply.json()
            done.append(None)
            if len(done) == messages:
                worker.state.should_stop = 0

        for request in ready:
            send.delay(request.body.decode())
        with spent(messages):
            app.Worker(pool="gevent", concurrency=in_flight, loglevel="ERROR", quiet=True).start()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
