"""The whole loop: environment steps a second of `learn` on real Meta-World, beside what its two parts allow.

    python benchmarks/end_to_end.py [--cases MT10-250 MT10-1280 ...] [--rounds 3] [--device cpu|cuda] [--threads 1]

A case is a task set, a batch size and, with "-small", the laptop's network on one thread of torch, with critics by
squared errors, instead of the authors' shallow one on all. One gradient step for each step of all envs. In each round
every contender runs for some seconds, in turn:

- "envs alone": our vector env with random actions; "learner alone": gradient steps on a few transitions;
- "learn": one after the other; "learn, overlap": the learner works while the envs step. "of the slower part" is the
  median, over the rounds, of the rate as a share of the lower of the two above;
- SB3's SAC in SB3's DummyVecEnv of Meta-World's own envs: with its MLP of 3 x 400, and with the authors' network
  written as modules in loops.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from learner import LoopedPolicy
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecEnv
from vec_env import sb3

from sb3_softmod import SoftModSAC, make_metaworld_env
from sb3_softmod.learner.acceleration import keep_memory

CASES = ("MT10-640-small", "MT10-1280", "MT50-1250")
NETWORKS: dict[bool, dict[str, Any]] = {
    True: dict(embedding_dim=128, module_dim=128),
    False: dict(variant="official", preset="shallow"),
}

#: Runs for at least some seconds; returns environment steps a second.
Contender = Callable[[float], float]


def rate(step: Callable[[], None], env_steps: int, seconds: float) -> float:
    """Environment steps a second of a function that takes some, or the gradient step that belongs to them."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    if th.cuda.is_available():
        th.cuda.synchronize()
    return count * env_steps / (time.perf_counter() - start)


def stepping(env: VecEnv) -> Contender:
    rng = np.random.default_rng(0)
    env.reset()

    def step() -> None:
        env.step(rng.uniform(-1, 1, (env.num_envs, 4)).astype(np.float32))

    return lambda seconds: rate(step, env.num_envs, seconds)


def learning(model: SAC, batch_size: int) -> Contender:
    return lambda seconds: rate(lambda: model.train(1, batch_size), model.n_envs, seconds)


def looping(model: SAC) -> Contender:
    def step() -> None:
        model.learn(20 * model.n_envs, reset_num_timesteps=False, log_interval=10**9)

    return lambda seconds: rate(step, 20 * model.n_envs, seconds)


def contenders(case: str, device: str) -> tuple[dict[str, Contender], list[VecEnv]]:
    """Contenders by name, and their envs."""
    tasks, size, *small = case.split("-")
    batch_size = int(size)
    envs: list[VecEnv] = []

    def ours(overlap: bool) -> SoftModSAC:
        envs.append(make_metaworld_env(tasks, seed=0))
        return SoftModSAC(
            "SoftModPolicy",
            envs[-1],
            batch_size=batch_size,
            learning_starts=0,
            policy_kwargs=NETWORKS[bool(small)],
            overlap=overlap,
            device=device,
            seed=0,
        ).learn(20 * envs[-1].num_envs)

    def theirs(policy: Any, **policy_kwargs: Any) -> SAC:
        envs.append(sb3(tasks, "DummyVecEnv"))
        return SAC(
            policy,
            envs[-1],
            batch_size=batch_size,
            learning_starts=0,
            buffer_size=100_000,
            policy_kwargs=policy_kwargs,
            device=device,
            seed=0,
        )

    envs.append(make_metaworld_env(tasks, seed=0))
    found = {"envs alone": stepping(envs[-1]), "learner alone": learning(ours(overlap=False), batch_size)}
    found |= {"learn": looping(ours(overlap=False)), "learn, overlap": looping(ours(overlap=True))}
    found["SB3: SAC, MLP 3 x 400"] = looping(theirs("MlpPolicy", net_arch=[400] * 3))
    if not small:
        looped = theirs(LoopedPolicy, num_tasks=envs[-1].num_envs, preset="shallow")
        found["SB3: SAC, modules in loops"] = looping(looped)
    return found, envs


def compare(case: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints the table of one case and returns its rows."""
    th.set_num_threads(1 if case.endswith("small") else args.threads)
    parts, envs = contenders(case, args.device)
    rates: dict[str, list[float]] = {name: [] for name in parts}
    for round_ in range(args.rounds + 1):
        for name, run in parts.items():
            found = run(args.seconds)
            if round_:  # the first warms up
                rates[name].append(found)
    for env in envs:
        env.close()

    slower = [min(pair) for pair in zip(rates["envs alone"], rates["learner alone"], strict=True)]
    print(f"\n{case:32}{'env-steps/s (least - most)':>32}{'of the slower part':>20}")
    rows = []
    for name, values in rates.items():
        share = statistics.median(value / limit for value, limit in zip(values, slower, strict=True))
        rows.append(dict(case=case, contender=name, env_steps_per_second=values, of_the_slower_part=share))
        spread = f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"
        print(f"{name:32}{spread:>32}{share:>20.0%}", flush=True)
    return rows


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of a contender in a round, at least")
    parser.add_argument("--threads", type=int, default=th.get_num_threads(), help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/end_to_end.json")
    args = parser.parse_args()
    keep_memory()

    machine = f"{len(os.sched_getaffinity(0))} cores, {args.threads} threads of torch, {args.device}"
    print(f"{args.rounds} rounds of {args.seconds} s, {machine}")
    rows = [row for case in args.cases for row in compare(case, args)]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(machine=machine, torch=th.__version__, rows=rows), indent=1))


if __name__ == "__main__":
    main()
