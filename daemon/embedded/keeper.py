"""
The keeper: a program of its own that runs a server until its last user is gone.

Run as ``python keeper.py ORDERS``, with ``users.lock`` as standard input, a pipe that tells the starter when we end as
standard output, and the log as standard error. It imports nothing of ours: it must start in a bare interpreter.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

PATIENCE_S = 60.0  # what a fast shutdown may take before we insist


def keep(orders: str) -> None:
    """Start the server of *orders* and stay until it has ended."""
    if os.fork():
        os._exit(0)  # the starter waits for this one; the keeper is nobody's child
    spec = json.loads(orders)
    server = subprocess.Popen(
        spec["command"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        stderr=sys.stderr.fileno(),
        user=spec["uid"],
        group=spec["gid"],
        extra_groups=None if spec["uid"] is None else [],
        cwd="/",
    )
    signal.signal(signal.SIGTERM, lambda *_: server.send_signal(signal.SIGINT))
    threading.Thread(target=_end_with_the_last_user, args=(server,), daemon=True).start()
    server.wait()
    if spec["rubbish"]:
        shutil.rmtree(spec["rubbish"], ignore_errors=True)


def _end_with_the_last_user(server: subprocess.Popen[bytes]) -> None:
    fcntl.flock(sys.stdin.fileno(), fcntl.LOCK_EX)
    server.send_signal(signal.SIGINT)  # fast: connections are cut, a checkpoint is written
    time.sleep(PATIENCE_S)
    server.send_signal(signal.SIGQUIT)  # at once: the next start recovers from the log


if __name__ == "__main__":
    keep(sys.argv[1])
