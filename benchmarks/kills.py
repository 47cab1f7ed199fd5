"""Trainings that are killed at random moments and resumed, against those that were not: nothing is lost or differs.

    python benchmarks/kills.py [--synthetic 200] [--metaworld 10] [--seed 0]

Numbers of processes to kill with SIGKILL. "lost" counts the kills after which a run did not go on from the newest
checkpoint that was on the disk, "different" the finished runs that differ in a bit from the one that nobody killed: in
parameters, optimizers, temperatures, replay buffer, random generators, the envs' next steps, or what was logged.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the training is that of the tests

from resumable_run import PATIENCE, Runs

RESULTS = Path(__file__).parent / "results" / "kills.json"


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


def kills(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of counts for each set.

    :param args: ``synthetic`` and ``metaworld``, the numbers of kills, and ``seed``
    """
    runs, rng = Runs(), random.Random(args.seed)
    try:
        with tempfile.TemporaryDirectory() as parent:
            wanted = {"restless": args.synthetic, "metaworld": args.metaworld}
            return [kill_runs(runs, kind, number, rng, Path(parent)) for kind, number in wanted.items() if number]
    finally:
        runs.close()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", type=int, default=200)
    parser.add_argument("--metaworld", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = kills(args)
    print(f"\n{'set':12}{'kills':>6}{'runs':>6}{'lost':>6}{'different':>11}{'seconds':>9}")
    for row in rows:
        print("{set:12}{kills:>6}{runs:>6}{lost:>6}{different:>11}{seconds:>9}".format(**row))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))
    if any(row["lost"] or row["different"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
