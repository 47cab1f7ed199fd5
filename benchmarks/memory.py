"""What a transition takes in replay memory, and what a batch costs: our buffer beside SB3's, at 10 and 50 tasks.

    python benchmarks/memory.py [--transitions 500000] [--rounds 200] [--device cpu]

Meta-World's shapes (39 observations, 4 actions), one env a task, episodes of 200 random steps, no simulator. SB3's
buffer holds observations with their one-hot task, in float64 (which Meta-World's own envs send) and in float32. Bytes
are those of the arrays that each buffer allocated, once full; the ends of episodes are among them. In each round every
buffer adds a step of the envs and draws the paper's batch, 128 samples a task, plain and normalised: the ratio is
taken round by round. One thread of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from methods import NUM_TASKS, Shapes
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskVecNormalize, make_multitask_env
from sb3_softmod.runs.parameters import ACTION_DIM, OBSERVATION_DIM

SAMPLES_A_TASK = 128
HORIZON = 200
OURS, SB3_64, SB3_32 = "MultiTaskReplayBuffer", "SB3, float64", "SB3, float32"
TIMES = ("add", "batch", "normalised")


def make_buffers(num_tasks: int, transitions: int, device: str) -> dict[str, ReplayBuffer]:
    width = OBSERVATION_DIM + num_tasks
    common: dict[str, Any] = dict(device=device, n_envs=num_tasks)

    def space(dtype: Any) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (width,), dtype)

    return {
        OURS: MultiTaskReplayBuffer(
            transitions, space(np.float32), Shapes.action_space, **common, num_tasks=num_tasks, storage_device=device
        ),
        SB3_64: ReplayBuffer(transitions, space(np.float64), Shapes.action_space, **common),
        SB3_32: ReplayBuffer(transitions, space(np.float32), Shapes.action_space, **common),
    }


def env_steps(num_tasks: int) -> Iterator[tuple[Any, ...]]:
    """The arguments of ``add``, one env a task, all in the same step of their episodes."""
    rng = np.random.default_rng(0)
    tasks = np.eye(num_tasks)

    def observations() -> np.ndarray:
        # Of float32 precision in float64, as the envs send them.
        return np.concatenate([rng.normal(size=(num_tasks, OBSERVATION_DIM)).astype(np.float32), tasks], 1)

    while True:
        obs = observations()
        for step in range(HORIZON):
            next_obs = observations()
            action = rng.uniform(-1, 1, (num_tasks, ACTION_DIM)).astype(np.float32)
            done = np.full(num_tasks, step == HORIZON - 1)
            infos = [{"TimeLimit.truncated": True} if done[0] else {} for _ in range(num_tasks)]
            yield obs, next_obs, action, rng.normal(size=num_tasks), done, infos
            obs = next_obs


def bytes_of(buffer: ReplayBuffer) -> int:
    return sum(array.nbytes for array in vars(buffer).values() if isinstance(array, (np.ndarray, th.Tensor)))


def milliseconds(function: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    function()
    if device != "cpu":
        th.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def measure(num_tasks: int, transitions: int, rounds: int, device: str) -> dict[str, dict[str, Any]]:
    """Bytes a transition of each buffer, and the milliseconds of each round."""
    buffers = make_buffers(num_tasks, transitions, device)
    env = make_multitask_env({f"task-{i}": Shapes for i in range(num_tasks)}, n_workers=0)
    normalize = {name: MultiTaskVecNormalize(env) if name == OURS else VecNormalize(env) for name in buffers}
    steps = env_steps(num_tasks)
    for _ in range(transitions // num_tasks):
        step = next(steps)
        for buffer in buffers.values():
            buffer.add(*step)
    assert all(buffer.full for buffer in buffers.values())

    batch_size = SAMPLES_A_TASK * num_tasks
    found: dict[str, dict[str, Any]] = {
        name: dict(bytes=bytes_of(buffer) / transitions, **{what: [] for what in TIMES})
        for name, buffer in buffers.items()
    }
    for round_ in range(rounds + 1):
        step = next(steps)
        for name, buffer in buffers.items():
            work: dict[str, Callable[[], Any]] = dict(
                add=partial(buffer.add, *step),
                batch=partial(buffer.sample, batch_size),
                normalised=partial(buffer.sample, batch_size, env=normalize[name]),
            )
            for what in TIMES:
                took = milliseconds(work[what], device)
                if round_:  # the first warms up
                    found[name][what].append(round(took, 4))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--transitions", type=int, default=500_000, help="divisible by 50; SB3's take up to 1.5 kB each"
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--device", default="cpu", help="of our storage, and of the batches of all")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/memory.json")
    args = parser.parse_args()
    th.set_num_threads(1)

    machine = f"{len(os.sched_getaffinity(0))} cores, 1 thread of torch, {args.device}"
    print(f"{args.transitions} transitions, batches of {SAMPLES_A_TASK} a task, {args.rounds} rounds, {machine}")
    print("milliseconds: median (x that of our buffer)")
    print(f"{'tasks':>5} {'buffer':22}{'bytes':>8}" + "".join(f"{what:>20}" for what in TIMES))
    results = {}
    for num_tasks in NUM_TASKS:
        found = measure(num_tasks, args.transitions, args.rounds, args.device)
        for name, row in found.items():
            row["relative"] = {
                what: statistics.median(a / b for a, b in zip(row[what], found[OURS][what], strict=True))
                for what in TIMES
            }
            cells = (f"{statistics.median(row[what]):.3f} (x {row['relative'][what]:.2f})" for what in TIMES)
            print(f"{num_tasks:>5} {name:22}{row['bytes']:>8.1f}" + "".join(f"{cell:>20}" for cell in cells))
        results[num_tasks] = found
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = dict(machine=machine, transitions=args.transitions, samples_a_task=SAMPLES_A_TASK, horizon=HORIZON)
        args.out.write_text(json.dumps(dict(**settings, tasks=results), indent=1))


if __name__ == "__main__":
    main()
