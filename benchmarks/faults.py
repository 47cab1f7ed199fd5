"""What goes wrong, by the hundred, and what the library makes of it; a table of counts.

    python benchmarks/faults.py [--only worker-kills soak] [--quick]

bad-inputs    500 bad arguments, shapes, files and paths (tests/helpers/bad_inputs.py): each has to be refused by an
              error of the package's own that names what is bad, without a hang and without half a file.
worker-kills  50 times SIGKILL for a worker process at a random moment of one training run, with restart_failed=True:
              the run has to end, with as many episodes of each task begun as of every other (or one more).
kills         200 times SIGKILL for trainings on a small synthetic set and 10 times on Meta-World, at random moments
              after they have begun, each resumed until it is finished: none may be lost, nor differ in a bit from one
              that nobody killed.
soak          2 million steps of stub envs through MultiTaskVecEnv and MultiTaskReplayBuffer: memory (of this process
              and of the workers), open files and shared memory must not grow after the first tenth (memory by 2 %).

--quick takes a tenth of each. The exit status is 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from child_processes import workers_of


class Row(NamedTuple):
    """A count, and what it has to be."""

    what: str
    value: Any
    wanted: str
    ok: bool


# ---------------------------------------------------------------------------------------------------- bad inputs


def bad_inputs(args: argparse.Namespace) -> list[Row]:
    """Refused clearly, by family."""
    from bad_inputs import generate, outcome

    cases = generate(50 if args.quick else 500)
    clear: Counter[str] = Counter()
    problems = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            problem = outcome(case, Path(folder))
        clear[case.family] += problem is None
        if problem is not None:
            problems.append(f"{case.family}: {case.text}: {problem}")
    print(*problems, sep="\n", end="\n" * bool(problems))
    number = Counter(case.family for case in cases)
    rows = [Row(f"clear errors: {name}", clear[name], f"{n} of {n}", clear[name] == n) for name, n in number.items()]
    rows.append(Row("clear errors", sum(clear.values()), f"{len(cases)} of {len(cases)}", not problems))
    return [*rows, Row("others", len(problems), "0", not problems)]


# -------------------------------------------------------------------------------------------------- worker kills


def worker_kills(args: argparse.Namespace) -> list[Row]:
    """One training run, 8 tasks taking turns in 4 envs of 2 workers."""
    return train_under_fire(5 if args.quick else 50)


def train_under_fire(kills: int, num_tasks: int = 8, n_envs: int = 4, seed: int = 0) -> list[Row]:
    """Train until the workers were killed so many times, and then a little longer.

    A worker is killed when the envs took a step since the last kill: one that dies again and again before any step is
    given up, as it is meant to be.
    """
    from stable_baselines3.common.callbacks import BaseCallback
    from worker_envs import make_copy

    from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecEnv

    env = MultiTaskVecEnv(
        [partial(make_copy, task, num_tasks=num_tasks) for task in range(num_tasks)],
        n_envs=n_envs,
        n_workers=2,
        restart_failed=True,
    )
    killer = Killer(kills, lambda: (env.num_restarts, model.num_timesteps), random.Random(seed))
    ended: Counter[int] = Counter()

    class Watch(BaseCallback):
        """Counts the episodes that ended, cut off or not."""

        def _on_step(self) -> bool:
            for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
                ended[info["task_id"]] += bool(done)
            return killer.is_alive() or self.num_timesteps < killer.steps_at_the_end + 100 * n_envs

    model = MultiTaskSAC(
        "MTMlpPolicy",
        env,
        batch_size=2 * num_tasks,
        learning_starts=0,
        buffer_size=20_000,
        policy_kwargs=dict(net_arch=[8]),
        seed=seed,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Building the envs of a worker anew")
        killer.start()
        try:
            model.learn(10**9, Watch(), log_interval=None)
        finally:
            killer.stop()
    begun = ended + Counter(env.task_ids.tolist())
    counts = [begun[task] for task in range(num_tasks)]
    finite = all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())
    restarts = env.num_restarts
    env.close()
    left = len(workers_of(os.getpid()))
    assert isinstance(model.replay_buffer, MultiTaskReplayBuffer)
    stored = int(model.replay_buffer.added_per_task.sum())
    return [
        Row("workers killed", killer.done, str(kills), killer.done == kills),
        Row("workers started again", restarts, str(kills), restarts == kills),
        # The step that ended the run is not stored: a callback that stops it comes first.
        Row("steps of the run", model.num_timesteps, "all but the last stored", stored == model.num_timesteps - n_envs),
        Row("gradient steps", model._n_updates, "more than 0, finite", model._n_updates > 0 and finite),
        Row("episodes begun, fewest of a task", min(counts), "more than 0", min(counts) > 0),
        Row("episodes begun, most of a task", max(counts), "at most one more", max(counts) - min(counts) <= 1),
        Row("workers left behind", left, "0", left == 0),
    ]


class Killer(threading.Thread):
    """Kills workers of this process at random moments.

    :param kills: how many
    :param progress: how many workers were started again, and how many steps the envs took
    :param rng: of the moments and the workers
    """

    def __init__(self, kills: int, progress: Callable[[], tuple[int, int]], rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.steps_at_the_end = 0
        self._kills = kills
        self._progress = progress
        self._rng = rng
        self._stopped = threading.Event()

    def run(self) -> None:
        while self.done < self._kills and not self._stopped.is_set():
            started, steps = self._progress()
            if started < self.done or steps <= self.steps_at_the_end + 40:  # 10 steps of each of the 4 envs
                time.sleep(0.001)
                continue
            time.sleep(self._rng.uniform(0, 0.03))
            os.kill(self._rng.choice(workers_of(os.getpid())), signal.SIGKILL)
            self.done += 1
            self.steps_at_the_end = self._progress()[1]

    def stop(self) -> None:
        self._stopped.set()
        self.join()


# ---------------------------------------------------------------------------------------------------------- soak


def soak(args: argparse.Namespace) -> list[Row]:
    """10 tasks in 2 workers."""
    return soak_for(200_000 if args.quick else 2_000_000)


def soak_for(steps: int, num_tasks: int = 10, growth: float = 0.02) -> list[Row]:
    """Step, store and sample; look at memory, files and shared memory every hundredth of the way.

    The buffer is full after a twentieth, and the first tenth warms up.

    :param steps: of all envs together
    :param growth: how much larger memory may be at the end than after the first tenth
    """
    from shared_memory import left_behind, segments
    from worker_envs import make_copy

    from sb3_softmod import MultiTaskReplayBuffer, MultiTaskVecEnv

    before = segments()
    env = MultiTaskVecEnv([partial(make_copy, task, num_tasks=num_tasks) for task in range(num_tasks)], n_workers=2)
    buffer = MultiTaskReplayBuffer(
        steps // 20, env.observation_space, env.action_space, "cpu", num_tasks, num_tasks=num_tasks
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (997, num_tasks, 2)).astype(np.float32)
    seen: list[dict[str, float]] = []
    rounds = steps // num_tasks
    obs = env.reset()
    for step in range(rounds):
        action = actions[step % len(actions)]
        next_obs, rewards, dones, infos = env.step(action)
        assert isinstance(next_obs, np.ndarray)
        ends = next_obs.copy()
        for index in np.flatnonzero(dones):
            ends[index] = infos[index]["terminal_observation"]
        buffer.add(obs, ends, action, rewards, dones, infos)
        obs = next_obs
        if step % 10 == 9:
            buffer.sample(4 * num_tasks)
        if step % (rounds // 100) == rounds // 100 - 1:
            seen.append(_resources())
    stored = int(buffer.added_per_task.sum())
    left = len(left_behind(before))
    env.close()
    warm, last = seen[len(seen) // 10 - 1], {name: max(s[name] for s in seen[-10:]) for name in seen[0]}
    rows = [Row("steps stored", stored, str(rounds * num_tasks), stored == rounds * num_tasks)]
    for name, first in warm.items():
        limit = growth if "memory of" in name else 0.0
        rows.append(
            Row(
                f"{name}: growth since the first tenth ({first:g})",
                f"{last[name] / first - 1 if first else last[name]:+.2%}",
                f"at most {limit:.0%}",
                last[name] <= (1 + limit) * first,
            )
        )
    return [*rows, Row("shared memory left in /dev/shm", left, "0", left == 0)]


def _resources() -> dict[str, float]:
    own, workers = os.getpid(), workers_of(os.getpid())
    return {
        "memory of this process, MB": _rss(own),
        "memory of the workers, MB": round(sum(map(_rss, workers)), 1),
        "files open in this process": len(os.listdir(f"/proc/{own}/fd")),
        "files open in the workers": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers),
        "shared memory mapped": sum("/dev/shm/" in line for line in Path(f"/proc/{own}/maps").read_text().splitlines()),
    }


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def kills(args: argparse.Namespace) -> list[Row]:
    """Runs that are killed and resumed."""
    from kills import kill_sets

    rows = []
    for found in kill_sets({"restless": 20, "metaworld": 1} if args.quick else {"restless": 200, "metaworld": 10}, 0):
        of = f"{found['set']}: of {found['kills']} kills in {found['runs']} runs, "
        rows += [Row(of + what, found[what], "0", found[what] == 0) for what in ("lost", "different")]
    return rows


#: By name: from the arguments of the command to rows of the table.
SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "bad-inputs": bad_inputs,
    "worker-kills": worker_kills,
    "kills": kills,
    "soak": soak,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/faults.json")
    args = parser.parse_args()
    th.set_num_threads(1)

    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    ok = True
    print(f"{'':14}{'':64} {'found':>10}   wanted")
    for name in args.only:
        start = time.perf_counter()
        rows = SECTIONS[name](args)
        seconds = time.perf_counter() - start
        for row in rows:
            print(f"{name:14}{row.what:64} {row.value!s:>10}   {row.wanted}{'' if row.ok else '   NOT SO'}", flush=True)
        ok &= all(row.ok for row in rows)
        results[name] = dict(seconds=round(seconds, 1), quick=args.quick, rows=[row._asdict() for row in rows])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
