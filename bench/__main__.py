"""
The bench: Outrider beside what it is built on, on this machine, in one run.

Each round runs everybody once, one after the other, against the same sink (a provider that says yes to everything): a
bare protocol, which shows how fast the sink can be asked at all; aiohttp's client alone; Outrider as shipped, and on
that client; and what a user would otherwise pick, where it is installed. Outrider is then told two receipts for each
message. At the end come whole lives, sent while their receipts come, and login codes at a steady rate, alone, among
1,000 messages a second, among half as many as Outrider can send, and while receipts come in a burst, to see how long
they take from commit to provider.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import orjson
import uvloop
from rich.console import Console

from bench import load, outrider
from bench.messages import MESSAGES_MAX
from bench.peers import PEERS
from bench.report import Report, Round
from bench.scale import Growth, scale
from bench.shape import Shape
from daemon.embedded import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load import Sink
    from daemon.embedded import Server

EPILOG = """\
examples:
  make bench
  outrider bench --rounds 9
  outrider bench --json result.json --picture result.svg     the figures, and a drawing of them, as files
  outrider bench --json | jq .ratios
  outrider bench --scale --picture scale.svg                 what a message costs as backlog, senders, flights grow

Believe ratios only, and only those of one run. Let nothing else run meanwhile; "sink_headroom" below 3 means that the
sink was busy itself, and the ratio to aiohttp's client then flatters whoever is slower.
Exit code 0: everything arrived once and was written down. 1: it did not, or something could not be started.
"""
CODES_PER_SECOND = 50  # login codes, to see how long each takes
PRESSED_PER_SECOND = 1_000  # codes and others; then half of what was reached

errors = Console(stderr=True, highlight=False)


async def bench(arguments: argparse.Namespace) -> Report:
    """All rounds."""
    count, in_flight = arguments.messages, arguments.in_flight
    async with load.sink() as sink, outrider.postgres() as server:
        rounds = [await _round(arguments, sink, server, number) for number in range(1, arguments.rounds + 1)]
        peak = median(one.outrider.rate for one in rounds)
        async with outrider.Outrider.installed(server, "lives") as ours:
            life = await ours.life(sink, count, in_flight)
            _tell("whole lives", life.rate)
            delays, pressed, burst = await _delays(ours, sink, arguments.codes, peak)
            postgres = str(await ours.connection.fetchval("SHOW server_version"))
    return Report(
        messages=count, in_flight=in_flight, rounds=rounds, life=life, latency_ms=load.percentiles(delays),
        pressed=pressed, burst=burst, postgres=postgres,
    )  # fmt: skip


async def _round(arguments: argparse.Namespace, sink: Sink, server: Server, number: int) -> Round:
    errors.print(f"round {number} of {arguments.rounds}")
    count, in_flight = arguments.messages, arguments.in_flight
    lean = await load.client("lean", sink, count, min(in_flight, 64))
    _tell("a bare protocol", lean.rate)
    raw = await load.client("raw", sink, count, in_flight)
    _tell("aiohttp's client", raw.rate)
    async with outrider.Outrider.installed(server, f"plain_{number}", Shape(client="aiohttp")) as ours:
        plain = await ours.drain(sink, count, in_flight)
        _tell("Outrider on that client", plain.rate)
    async with outrider.Outrider.installed(server, f"bench_{number}") as ours:
        drain = await ours.drain(sink, count, in_flight)
        _tell("Outrider", drain.rate)
        callbacks = await sink.callbacks()
        again = await load.client("raw", sink, count, in_flight)
        _tell("aiohttp's client again", again.rate)
        told = await ours.told(sink, callbacks)
        _tell("Outrider, receipts", told.rate)
    peers = {}
    for peer in PEERS:
        if peer.installed:
            run = await peer.drain(server, sink, count, in_flight, name=f"peer_{number}_{peer.key}")
            peers[peer.key] = run
            _tell(peer.name, run.rate)
        elif number == 1:
            how = f"needs {peer.program}, and `make bench`" if peer.program else "`make bench` installs it"
            errors.print(f"  {peer.name:24} not installed; {how}")
    # Before and after us: a machine that is shared grows quicker and slower within a round.
    return Round(lean=lean, raw=load.mean(raw, again), outrider=drain, plain=plain, told=told, peers=peers)


async def _delays(
    ours: outrider.Outrider, sink: Sink, seconds: float, peak: float
) -> tuple[list[float], list[outrider.Pressed], outrider.Burst | None]:
    """
    Of login codes, one by one; then of codes and others at two rates, and at the second while receipts come in a burst.
    *peak* is what Outrider reached.
    """
    if not seconds:
        return [], [], None
    alone = await ours.latency(sink, seconds=seconds, per_second=CODES_PER_SECOND)
    pressed = [
        await ours.pressed(sink, seconds=min(seconds, MESSAGES_MAX / rate), per_second=rate)
        for rate in (PRESSED_PER_SECOND, peak / 2)
    ]
    return alone, pressed, await ours.burst(sink, per_second=peak / 2)


def _tell(who: str, rate: float) -> None:
    errors.print(f"  {who:24} {rate:8,.0f} /s", markup=False)


def _number(least: int, most: int) -> type[int]:
    def read(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"from {least:,} to {most:,}")
        return int(text)

    return read  # type: ignore[return-value]  # argparse names the type in its errors


def main(words: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="outrider bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=_number(1, 100), default=5, help="how often everybody runs (default: 5)")
    many = _number(100, MESSAGES_MAX)
    parser.add_argument("--messages", type=many, default=20_000, help="of each run (default: 20,000)")
    parser.add_argument("--in-flight", type=_number(1, 1_000), default=256, help="requests at a time (default: 256)")
    parser.add_argument("--codes", type=float, default=10.0, metavar="SECONDS", help="of login codes (default: 10)")
    parser.add_argument("--scale", action="store_true", help="instead, what growth costs (bench/scale.py)")
    parser.add_argument(
        "--waiting", type=_number(10_000, 100_000_000), default=1_000_000,
        help="with --scale: the longest queue (default: 1,000,000; ten million take some minutes)",
    )  # fmt: skip
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the figures; without FILE, to stdout")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a drawing of the rates, as SVG")
    arguments = parser.parse_args(words)
    try:
        report: Report | Growth
        report = uvloop.run(scale(arguments)) if arguments.scale else uvloop.run(bench(arguments))
    except (load.BenchError, EmbeddedError) as trouble:
        errors.print(str(trouble), style="red", markup=False)
        return 1
    for table in report.tables():
        (errors if arguments.json == "-" else Console()).print(table)
    if arguments.json:
        text = orjson.dumps(report.document(), option=orjson.OPT_INDENT_2).decode() + "\n"
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text, encoding="utf-8")
    if arguments.picture:
        arguments.picture.write_text(report.drawn(), encoding="utf-8")
    if not report.ok:
        errors.print("something was lost, sent twice or not written down", style="red")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
