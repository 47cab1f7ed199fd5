"""What one gradient step and acting cost with every method, at 10 and at 50 tasks with the same batch.

    python benchmarks/methods.py [--methods mt_sac softmod_deep ...] [--batch-size 1250] [--rounds 5] [--steps 3]

Meta-World's shapes (39 observations, 4 actions), random transitions, no simulator. In each round every method takes a
few steps at 10 tasks and then at 50: "growth" is the ratio of the two, "x MT-SAC" that to MT-SAC's steps at 10 tasks
of the same round. "acting" is ``predict`` on one observation of each of the 50 tasks. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod import MultiTaskSAC, make_multitask_env
from sb3_softmod.learner.acceleration import keep_memory
from sb3_softmod.learner.learned_weights import LEARNED_WEIGHTINGS
from sb3_softmod.methods import METHODS, get_method
from sb3_softmod.runs.parameters import ACTION_DIM, OBSERVATION_DIM

NUM_TASKS = (10, 50)
Model = TypeVar("Model", bound=SAC)


class Shapes(gym.Env[np.ndarray, np.ndarray]):
    """Meta-World's spaces without its simulator; never stepped."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(OBSERVATION_DIM, np.float32), {}


def make_env(num_tasks: int) -> VecEnv:
    """Envs to make a model with."""
    return make_multitask_env({f"task-{i}": Shapes for i in range(num_tasks)}, n_workers=0)


def make_model(name: str, num_tasks: int, batch_size: int, device: str = "cpu", **options: Any) -> MultiTaskSAC:
    """A model whose buffer holds 200 random transitions of each task."""
    options |= dict(buffer_size=200 * num_tasks, batch_size=batch_size, seed=0, device=device)
    return fill(get_method(name).make(make_env(num_tasks), **options))


def fill(model: Model) -> Model:
    """Give a model 200 random transitions of each task, and a logger that writes nothing."""
    model.set_logger(Logger(folder=None, output_formats=[]))
    num_tasks = model.n_envs
    rng = np.random.default_rng(0)
    tasks = np.eye(num_tasks, dtype=np.float32)
    states = rng.normal(size=(201, num_tasks, OBSERVATION_DIM)).astype(np.float32)
    assert model.replay_buffer is not None
    for now, following in pairwise(states):
        model.replay_buffer.add(
            np.concatenate([now, tasks], 1),
            np.concatenate([following, tasks], 1),
            rng.uniform(-1, 1, (num_tasks, ACTION_DIM)),
            rng.normal(size=num_tasks),
            np.zeros(num_tasks, bool),
            [{}] * num_tasks,
        )
    return model


def seconds_a_step(model: MultiTaskSAC, steps: int, batch_size: int) -> float:
    start = time.perf_counter()
    model.train(steps, batch_size)
    if model.device.type == "cuda":
        th.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def seconds_to_act(model: MultiTaskSAC, repeats: int = 50) -> float:
    """Of one call of ``predict`` with an observation of each task."""
    states = np.random.default_rng(0).normal(size=(model.num_tasks, OBSERVATION_DIM))
    observations = np.concatenate([states, np.eye(model.num_tasks)], 1).astype(np.float32)
    start = time.perf_counter()
    for _ in range(repeats):
        model.predict(observations)  # brings the actions back to the CPU
    return (time.perf_counter() - start) / repeats


def distinct() -> list[str]:
    """MT-SAC first, and of the methods with the same network and step only one."""
    seen: dict[str, str] = {}
    for name in ("mt_sac", *METHODS):
        method = METHODS[name]
        weighting = method.options.get("loss_weighting")
        balance = method.options.get("gradient_surgery"), weighting if weighting in LEARNED_WEIGHTINGS else None
        network = {k: v for k, v in method.policy_kwargs.items() if k != "condition_on_obs"}  # as costly without
        seen.setdefault(f"{method.policy} {network} {balance}", name)
    return list(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=distinct(), help="MT-SAC is always among them")
    parser.add_argument("--batch-size", type=int, default=1250, help="divisible by 10 and 50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="gradient steps in a turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/methods.json")
    args = parser.parse_args()
    keep_memory()

    names = list(dict.fromkeys(["mt_sac", *args.methods]))
    times: dict[str, dict[int, list[float]]] = {name: {m: [] for m in NUM_TASKS} for name in names}
    acting: dict[str, dict[int, list[float]]] = {name: {m: [] for m in NUM_TASKS} for name in names}
    models = {
        (name, num_tasks): make_model(name, num_tasks, args.batch_size, args.device)
        for name in names
        for num_tasks in NUM_TASKS
    }
    for round_ in range(args.rounds + 1):
        print(f"round {round_} of {args.rounds}" if round_ else "warming up", file=sys.stderr)
        for (name, num_tasks), model in models.items():
            seconds, seconds_acting = seconds_a_step(model, args.steps, args.batch_size), seconds_to_act(model)
            if round_:  # the first warms up
                times[name][num_tasks].append(seconds)
                acting[name][num_tasks].append(seconds_acting)

    few, many = NUM_TASKS
    machine = f"{len(os.sched_getaffinity(0))} cores, {th.get_num_threads()} threads of torch, {args.device}"
    print(f"batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps, {machine}")
    header = f"{few} tasks (min - max)"
    print(f"{'method':34}{header:>28}{f'{many} tasks':>12}{'x MT-SAC':>10}{'growth':>8}{'acting':>10}")
    rows = []
    for name in names:
        one, other = times[name][few], times[name][many]
        row = dict(
            method=name,
            milliseconds=milliseconds(times[name]),
            acting_milliseconds=milliseconds(acting[name]),
            relative=statistics.median(t / base for t, base in zip(one, times["mt_sac"][few], strict=True)),
            growth=statistics.median(more / less for more, less in zip(other, one, strict=True)),
        )
        rows.append(row)
        spread = f"{1e3 * statistics.median(one):.1f} ms ({1e3 * min(one):.1f} - {1e3 * max(one):.1f})"
        last, act = f"{1e3 * statistics.median(other):.1f} ms", f"{1e3 * statistics.median(acting[name][many]):.2f} ms"
        print(f"{METHODS[name].title:34}{spread:>28}{last:>12}{row['relative']:>10.2f}{row['growth']:>8.2f}{act:>10}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(machine=machine, batch_size=args.batch_size, methods=rows), indent=1))


def milliseconds(seconds: dict[int, list[float]]) -> dict[int, list[float]]:
    return {num_tasks: [1e3 * second for second in each] for num_tasks, each in seconds.items()}


if __name__ == "__main__":
    main()
