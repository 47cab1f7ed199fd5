"""Trainings that are killed at random moments and resumed, against those that were not: a section of faults.py.

"lost" counts the kills after which a run did not go on from the newest checkpoint that was on the disk, "different" the
finished runs that differ in a bit from the one that nobody killed: in parameters, optimizers, temperatures, replay
buffer, random generators, the envs' next steps, or what was logged.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resumable_run import PATIENCE, Runs  # of the tests; faults.py knows the way there


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint on the disk, 0 without one."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)


def outcome(folder: Path) -> tuple[dict[str, bytes], set[str]]:
    """What a run ended with, and its different logs: those between a checkpoint and a kill are there again."""
    return pickle.loads((folder / "final.pkl").read_bytes()), set((folder / "log").read_text().splitlines())


def until_it_trains(folder: Path, start: int) -> None:
    """Wait for the process to say where it starts, for the ``start``-th time; not for one that cannot."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (folder / "starts").exists() and len((folder / "starts").read_text().splitlines()) >= start:
            return
        time.sleep(0.002)


def kill_runs(runs: Runs, kind: str, wanted: int, rng: random.Random, parent: Path) -> dict[str, Any]:
    """Kill so many processes; a run is resumed until it is finished, and then another one begins.

    :param kind: of :func:`resumable_run.run`
    :return: the counts
    """
    begin = time.perf_counter()
    whole = parent / f"{kind}-whole"
    pid = runs.start(whole, kind=kind)
    until_it_trains(whole, 1)
    start = time.monotonic()
    assert runs.wait(pid) == 0, (whole / "errors").read_text()
    seconds, expected = time.monotonic() - start, outcome(whole)
    row: dict[str, Any] = dict(set=kind, kills=0, runs=0, lost=0, different=0, resumed_from=[])
    while row["kills"] < wanted:
        folder, status, starts = parent / f"{kind}-{row['runs']}", -signal.SIGKILL, 0
        while status != 0:
            before = newest_step(folder)
            pid = runs.start(folder, kind=kind)
            starts += 1
            until_it_trains(folder, starts)
            found = (folder / "starts").read_text().splitlines()
            row["lost"] += len(found) != starts or int(found[-1]) != before
            if starts > 1:
                row["resumed_from"].append(before)
            if row["kills"] < wanted:
                time.sleep(rng.uniform(0, seconds))
                os.kill(pid, signal.SIGKILL)
            status = runs.wait(pid)
            row["kills"] += status == -signal.SIGKILL
            if status not in (0, -signal.SIGKILL):
                print((folder / "errors").read_text(), file=sys.stderr)
                row["lost"] += 1
                break
        row["runs"] += 1
        row["different"] += status == 0 and outcome(folder) != expected
        print(f"  {kind}: {row['kills']} of {wanted} kills, {row['runs']} runs", flush=True)
    row["seconds"] = round(time.perf_counter() - begin, 1)
    return row


def kill_sets(wanted: dict[str, int], seed: int) -> list[dict[str, Any]]:
    """A row of counts for each set.

    :param wanted: the number of kills for each kind of :func:`resumable_run.run`
    """
    runs, rng = Runs(), random.Random(seed)
    try:
        with tempfile.TemporaryDirectory() as parent:
            return [kill_runs(runs, kind, number, rng, Path(parent)) for kind, number in wanted.items()]
    finally:
        runs.close()
