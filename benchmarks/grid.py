"""Runs side by side on this machine against one after the other, and what Ray adds to plain processes.

    python benchmarks/grid.py [--steps 20000] [--at-once 1 2 4] [--rounds 1]

As many runs as the largest of ``--at-once``, of ``mt_sac`` on MT3 with the settings of the laptop and one thread each,
by ``sb3-softmod grid``'s own runner with room for 1, 2 and 4 at once: seconds from the first start to the last end,
Python's start among them, and environment steps a second of all runs together. Then the same with Ray, on a node with
as much room as the machine has cores, against plain processes with as much, in turn in each round: the overhead is the
median ratio. Ray's own start is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from sb3_softmod.grid.cells import Cell, Resources
from sb3_softmod.grid.driver import run_grid
from sb3_softmod.grid.local import LocalRunner
from sb3_softmod.grid.resources import Capacity
from sb3_softmod.grid.runner import Runner


def cells_of(folder: Path, number: int, steps: int) -> list[Cell]:
    options = ["--conf-file", "laptop", "-n", str(steps), "--eval-freq", "-1", "--verbose", "0"]
    return [Cell.make("mt_sac", "MT3", seed, folder, options, Resources(memory=10**9), 0) for seed in range(number)]


def seconds(runner: Runner, number: int, steps: int) -> float:
    """That a grid of so many runs takes."""
    with tempfile.TemporaryDirectory() as folder:
        cells = cells_of(Path(folder), number, steps)
        start = time.perf_counter()
        failed = run_grid(cells, runner, lambda line: None)
        if failed:
            raise RuntimeError("\n".join(failed.values()))
        return time.perf_counter() - start


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of each run")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4], help="runs side by side")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--note", default="", help="on the conditions, for the file of results")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/grid.json")
    args = parser.parse_args()

    cores, runs = len(os.sched_getaffinity(0)), max(args.at_once)
    machine = f"{cores} cores, load {os.getloadavg()[0]:.1f} before"
    print(f"{runs} runs of {args.steps:,} steps, {args.rounds} rounds; {machine}; {args.note}")
    side_by_side: dict[int, list[float]] = {number: [] for number in args.at_once}
    for _ in range(args.rounds):
        for number in args.at_once:
            side_by_side[number].append(seconds(LocalRunner(partial(Capacity, number, 1e15, ())), runs, args.steps))
    one = side_by_side[min(args.at_once)]
    print(f"{'at once':>8}{'seconds':>10}{'steps/s':>10}{'x one':>8}")
    for number, took in side_by_side.items():
        speedup = statistics.median(a / b for a, b in zip(one, took, strict=True))
        median = statistics.median(took)
        print(f"{number:>8}{median:>10.1f}{runs * args.steps / median:>10.0f}{speedup:>8.2f}")

    import ray
    from ray.cluster_utils import Cluster

    from sb3_softmod.grid.ray import RayRunner

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": cores, "memory": 10**11, "include_dashboard": False}
    )
    ray_runner = RayRunner(cluster.address, shared=True)
    plain, with_ray = [], []
    for _ in range(args.rounds):
        plain.append(seconds(LocalRunner(partial(Capacity, cores, 1e15, ())), runs, args.steps))
        with_ray.append(seconds(ray_runner, runs, args.steps))
    ray.shutdown()
    cluster.shutdown()
    ratios = [b / a for a, b in zip(plain, with_ray, strict=True)]
    median, least, most = (100 * (of(ratios) - 1) for of in (statistics.median, min, max))
    print(f"plain {statistics.median(plain):.1f} s, Ray {statistics.median(with_ray):.1f} s")
    print(f"overhead {median:.1f} % ({least:.1f} to {most:.1f})")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        found = dict(side_by_side=side_by_side, plain=plain, ray=with_ray)
        args.out.write_text(
            json.dumps(dict(machine=machine, note=args.note, steps=args.steps, runs=runs, **found), indent=1)
        )


if __name__ == "__main__":
    main()
