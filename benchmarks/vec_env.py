"""Speed, memory and start of vectorised Meta-World: MultiTaskVecEnv beside SB3's and gymnasium's.

    python benchmarks/vec_env.py [--sets MT10 MT50] [--rounds 5] [--seconds 4]

The others hold Meta-World's own envs, as a user would make them without this package, which they must not import: in a
process that does, Meta-World's rewards and quaternions take less time.

Each contender lives in a process of its own, so that its memory can be told apart, and takes turns, round by round,
with the two that it is compared with: the ratios are of the same minutes.
Memory is the proportional set size of a contender's processes. The floor is what one process takes to step
Meta-World's simulators one after the other, divided by the cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np

HORIZON = 200


def ours(tasks: str) -> Any:
    from sb3_softmod import make_metaworld_env

    return make_metaworld_env(tasks, seed=0, max_episode_steps=HORIZON)


def sb3(tasks: str, cls: str) -> Any:
    """What users of SB3 have without this package: Meta-World's own envs in SB3's vectors."""
    from stable_baselines3.common import vec_env

    names = names_of(tasks)
    return getattr(vec_env, cls)([partial(own_env, name, i, len(names)) for i, name in enumerate(names)])


def names_of(tasks: str) -> list[str]:
    """The tasks of "MT10", "MT25" or "MT50"."""
    from metaworld import env_dict

    return list(getattr(env_dict, f"{tasks}_V3"))


def own_env(name: str, task_id: int, num_tasks: int) -> Any:
    import metaworld

    return metaworld.make_mt_envs(
        name, seed=task_id, num_tasks=num_tasks, env_id=task_id, use_one_hot=True, max_episode_steps=HORIZON
    )


def gymnasium(tasks: str, strategy: Literal["sync", "async"]) -> Any:
    import metaworld

    return metaworld.make_mt_envs(tasks, seed=0, use_one_hot=True, max_episode_steps=HORIZON, vector_strategy=strategy)


class Bare:
    """Meta-World's simulators, with no vector around them."""

    def __init__(self, tasks: str) -> None:
        names = names_of(tasks)
        self.envs = [own_env(name, i, len(names)) for i, name in enumerate(names)]
        self.num_envs = len(self.envs)
        self.t = 0

    def reset(self) -> None:
        for env in self.envs:
            env.reset()

    def step(self, actions: np.ndarray) -> None:
        for env, action in zip(self.envs, actions, strict=True):
            env.unwrapped.step(action)
        self.t += 1
        if self.t % HORIZON == 0:
            self.reset()

    def close(self) -> None:
        pass


CONTENDERS: dict[str, Callable[[str], Any]] = {
    "MultiTaskVecEnv": ours,
    "SB3 DummyVecEnv": partial(sb3, cls="DummyVecEnv"),
    "SB3 SubprocVecEnv": partial(sb3, cls="SubprocVecEnv"),
    "gymnasium sync": partial(gymnasium, strategy="sync"),
    "gymnasium async": partial(gymnasium, strategy="async"),
    "bare simulators": Bare,
}


#: What the others are compared with.
BASES = ("SB3 DummyVecEnv", "bare simulators")
OTHERS = [name for name in CONTENDERS if name not in BASES]
CORES = len(os.sched_getaffinity(0))


def contend(connection: Connection, name: str, tasks: str, seconds: float) -> None:
    """The life of a contender: start, say how long it took, then step for some seconds whenever asked."""
    start = time.perf_counter()
    env = CONTENDERS[name](tasks)
    env.reset()
    assert ("sb3_softmod" in sys.modules) == (CONTENDERS[name] is ours)
    connection.send(time.perf_counter() - start)
    actions = np.random.default_rng(0).uniform(-1, 1, (997, env.num_envs, 4)).astype(np.float32)
    t = 0
    while connection.recv():
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(10):
                env.step(actions[t % len(actions)])
                t += 1
            steps += 10 * env.num_envs
        connection.send(steps / (time.perf_counter() - start))
    env.close()


def family_pss(pid: int) -> int:
    """Proportional set size of a process and all below it, in bytes."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += family_pss(int(child))
    return total


class Contender:
    """A contender in a process of its own."""

    def __init__(self, name: str, tasks: str, seconds: float) -> None:
        context = mp.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=contend, args=(there, name, tasks, seconds))
        self._process.start()
        self.start_s = self._connection.recv()
        print(f"  {tasks}: {name} started in {self.start_s:.1f} s", flush=True)

    def speed(self) -> float:
        """Env-steps a second, over some seconds."""
        self._connection.send(True)
        return self._connection.recv()

    def pss_gb(self) -> float:
        assert self._process.pid is not None
        return family_pss(self._process.pid) / 1e9

    def close(self) -> None:
        self._connection.send(False)
        self._process.join()


def measure(tasks: str, names: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """One task set: each contender in turns with the two that it is compared with."""
    bases = {name: Contender(name, tasks, seconds) for name in BASES}
    rows: dict[str, dict[str, Any]] = {}
    for name in [*BASES, *names]:
        contender = bases.get(name) or Contender(name, tasks, seconds)
        turns = [{key: c.speed() for key, c in {**bases, name: contender}.items()} for _ in range(rounds + 1)]
        row = rows[name] = {"start_s": contender.start_s, "pss_gb": contender.pss_gb()}
        row["steps_per_s"] = [turn[name] for turn in turns[1:]]  # the first warms up
        row["ratio_to_dummy"] = statistics.median(turn[name] / turn[BASES[0]] for turn in turns[1:])
        row["share_of_floor"] = statistics.median(turn[name] / (turn[BASES[1]] * CORES) for turn in turns[1:])
        if name not in bases:
            contender.close()
    for contender in bases.values():
        contender.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["MT10", "MT50"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--contenders", nargs="+", default=OTHERS, choices=OTHERS)
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/vec_env.json")
    args = parser.parse_args()
    out: dict[str, Any] = {"cores": CORES, "rounds": args.rounds, "seconds": args.seconds, "sets": {}}
    for tasks in args.sets:
        rows = out["sets"][tasks] = measure(tasks, args.contenders, args.rounds, args.seconds)
        print(f"\n{tasks}, {CORES} cores, medians of {args.rounds} rounds of {args.seconds:g} s")
        print(
            f"{'':18} {'env-steps/s':>12} {'min - max':>14} {'x Dummy':>8} {'of floor':>9} {'PSS GB':>7} {'start s':>8}"
        )
        for name, row in rows.items():
            speeds = row["steps_per_s"]
            print(
                f"{name:18} {statistics.median(speeds):12,.0f} {f'{min(speeds):,.0f} - {max(speeds):,.0f}':>14} "
                f"{row['ratio_to_dummy']:8.2f} {row['share_of_floor']:9.0%} {row['pss_gb']:7.2f} {row['start_s']:8.1f}"
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
