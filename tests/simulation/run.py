"""
Runs worlds, and adds up what was seen in them.

    python -m tests.simulation.run SEED [STEPS]     one seed, every event of it told
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.laws import EVENTS, STATUSES, Broken
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

STEPS = 20_000  # of one world, before it comes to rest


@dataclass(slots=True)
class Sum:
    """What was seen in some worlds."""

    steps: int = 0
    lives: int = 0
    posts: int = 0
    copies: int = 0
    crashes: int = 0
    failovers: int = 0
    lost: int = 0
    seconds: float = 0.0  # of processor time
    seen: list[list[int]] = field(default_factory=lambda: [[0] * len(EVENTS) for _ in STATUSES])
    trodden: list[list[int]] = field(default_factory=lambda: [[0] * len(STATUSES) for _ in STATUSES])
    broken: list[str] = field(default_factory=list)

    def add(self, world: World) -> None:
        self.steps += world.steps
        self.lives += len(world.lives)
        self.posts += world.laws.posts
        self.copies += world.laws.copies
        self.crashes += world.crashes
        self.failovers += world.failovers
        self.lost += world.lost
        _add(self.seen, world.laws.seen)
        _add(self.trodden, world.laws.trodden)

    def merge(self, other: Sum) -> None:
        for name in ("steps", "lives", "posts", "copies", "crashes", "failovers", "lost", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        _add(self.seen, other.seen)
        _add(self.trodden, other.trodden)
        self.broken += other.broken

    def pairs(self) -> dict[tuple[str, str], int]:
        """How often each event met each status."""
        return {
            (status, event): count
            for status, row in zip(STATUSES, self.seen, strict=True)
            for event, count in zip(EVENTS, row, strict=True)
        }

    def table(self) -> str:
        """The same, to read."""
        lines = [f"{'':12}" + "".join(f"{event[-9:]:>10}" for event in EVENTS)]
        for status, row in zip(STATUSES, self.seen, strict=True):
            lines.append(f"{status:12}" + "".join(f"{count or '':>10}" for count in row))
        return "\n".join(lines)


def one(seed: int, steps: int = STEPS, *, tell: Callable[[str], None] | None = None) -> World:
    """Live one seed's world to its rest. Raises Broken, which names the seed."""
    world = World(seed, tell=tell)
    try:
        world.live(steps)
        world.rest()
    except Broken as broken:
        broken.add_note(f"python -m tests.simulation.run {seed} {steps}")
        raise
    return world


def some(seeds: Iterable[int], steps: int = STEPS) -> Sum:
    """Live the worlds of *seeds*; what breaks is told in the sum."""
    total, began = Sum(), time.process_time()
    for seed in seeds:
        world = World(seed)
        try:
            world.live(steps)
            world.rest()
        except Broken as broken:
            total.broken.append(
                f"seed {seed}, step {world.steps}: {broken} (python -m tests.simulation.run {seed} {steps})"
            )
        total.add(world)
    total.seconds = time.process_time() - began
    return total


def many(seeds: range, steps: int = STEPS, *, processes: int | None = None) -> Sum:
    """The same, over all processors."""
    processes = processes or os.cpu_count() or 1
    total = Sum()
    # Spawned, not forked: a test's process has threads and connections that no child must inherit.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(some, [seeds[k::processes] for k in range(processes)], [steps] * processes):
            total.merge(part)
    return total


def _add(here: list[list[int]], more: list[list[int]]) -> None:
    for row, other in zip(here, more, strict=True):
        for k, count in enumerate(other):
            row[k] += count


if __name__ == "__main__":
    one(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS, tell=print)
