"""How the learner grows with the number of tasks, and what acting costs.

    python benchmarks/scaling.py [--batch-size 1250] [--rounds 7] [--device cpu|cuda] [--threads 1]

A gradient step at 10, 25 and 50 tasks with the same batch, in turn: "growth" is the median ratio to 10 tasks in the
same round. "acting" is ``predict`` on one observation of each task.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from methods import OBSERVATION_DIM, make_model, seconds_a_step

from sb3_softmod.learner.acceleration import keep_memory

NUM_TASKS = (10, 25, 50)
METHODS = ("softmod_shallow", "softmod_deep", "softmod_official")


def seconds_to_act(model: Any, repeats: int = 50) -> float:
    """Of one call of ``predict`` with an observation of each task."""
    tasks = np.eye(model.num_tasks, dtype=np.float32)
    states = np.random.default_rng(0).normal(size=(model.num_tasks, OBSERVATION_DIM)).astype(np.float32)
    obs = np.concatenate([states, tasks], 1)
    start = time.perf_counter()
    for _ in range(repeats):
        model.predict(obs)  # brings the actions back to the CPU
    return (time.perf_counter() - start) / repeats


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=1250, help="divisible by 10, 25 and 50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="gradient steps in a turn")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/scaling.json")
    args = parser.parse_args()
    keep_memory()
    if args.threads:
        th.set_num_threads(args.threads)

    models = {(m, t): make_model(m, t, args.batch_size, args.device) for m in METHODS for t in NUM_TASKS}
    learning: dict[tuple[str, int], list[float]] = {key: [] for key in models}
    acting: dict[tuple[str, int], list[float]] = {key: [] for key in models}
    for round_ in range(args.rounds + 1):
        for key, model in models.items():
            step = seconds_a_step(model, args.steps, args.batch_size)
            act = seconds_to_act(model)
            if round_:  # the first warms up
                learning[key].append(step)
                acting[key].append(act)

    machine = f"{len(os.sched_getaffinity(0))} cores, {th.get_num_threads()} threads of torch, {args.device}"
    print(f"batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps, {machine}")
    print(f"{'method':20}{'tasks':>6}{'step, ms (least - most)':>30}{'growth':>8}{'acting, ms (least - most)':>30}")
    rows = []
    for (method, num_tasks), seconds in learning.items():
        growth = statistics.median(t / few for t, few in zip(seconds, learning[method, NUM_TASKS[0]], strict=True))
        row = dict(
            method=method,
            num_tasks=num_tasks,
            step_milliseconds=[1e3 * t for t in seconds],
            growth=growth,
            acting_milliseconds=[1e3 * t for t in acting[method, num_tasks]],
        )
        rows.append(row)
        spreads = [
            f"{statistics.median(v):.2f} ({min(v):.2f} - {max(v):.2f})"
            for v in ([1e3 * t for t in seconds], [1e3 * t for t in acting[method, num_tasks]])
        ]
        print(f"{method:20}{num_tasks:>6}{spreads[0]:>30}{growth:>8.2f}{spreads[1]:>30}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(machine=machine, batch_size=args.batch_size, rows=rows), indent=1))


if __name__ == "__main__":
    main()
