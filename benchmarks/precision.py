"""Whether learning suffers from bfloat16: curves of the same trainings in fp32 and in bf16.

    python benchmarks/precision.py [--seeds 0 1 2] [--threads 1] [--only pendulum metaworld]

"pendulum": three pendulums of different gravity as three tasks, by their mean return. "metaworld": reach-v3 with random
goals, by success. Both are evaluated on envs of their own while they learn. With ``--out`` the numbers are
written, with ``--figure`` the curves are drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod import MultiTaskVecNormalize, SoftModSAC, make_metaworld_env, make_multitask_env
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.learner.acceleration import keep_memory

PRECISIONS = ("fp32", "bf16")
NETWORK = dict(embedding_dim=128, num_layers=3, num_modules=4, module_dim=64)


def pendulums(seed: int) -> VecEnv:
    tasks = {f"g{g}": partial(gym.make, "Pendulum-v1", g=g) for g in (4, 7, 10)}
    return make_multitask_env(tasks, seed=seed, n_workers=0)


def reach(seed: int) -> VecEnv:
    return make_metaworld_env("reach-v3", seed=seed, envs_per_task=4, n_workers=0)


#: Envs, steps of all envs, evaluations, episodes of each, what is looked at, and options of the algorithm.
CASES: dict[str, tuple[Any, int, int, int, str, dict[str, Any]]] = {
    "pendulum": (pendulums, 18_000, 18, 5, "mean_return", dict(learning_rate=1e-3, batch_size=192)),
    "metaworld": (
        reach,
        48_000,
        16,
        12,
        "success_rate",
        dict(learning_rate=1e-3, gamma=0.97, batch_size=128, max_grad_norm=10.0),
    ),
}


def train(case: str, precision: Any, seed: int) -> dict[str, Any]:
    """One training; its curve."""
    make, steps, points, episodes, metric, options = CASES[case]
    env = MultiTaskVecNormalize(make(seed), norm_reward=False)
    test_env = MultiTaskVecNormalize(make(seed + 100), training=False)
    model = SoftModSAC("SoftModPolicy", env, policy_kwargs=NETWORK, precision=precision, seed=seed, **options)
    curve: list[float] = []
    learning = 0.0
    for _ in range(points):
        start = time.perf_counter()
        model.learn(steps // points, reset_num_timesteps=False, log_interval=None)
        learning += time.perf_counter() - start
        test_env.set_statistics(env.statistics())
        curve.append(float(np.mean(getattr(evaluate_tasks(model, test_env, n_eval_episodes=episodes), metric))))
    env.close()
    test_env.close()
    print(f"{case:10} seed {seed} {precision}: {curve[-1]:8.2f} at the end, {learning:.0f} s", flush=True)
    return dict(case=case, precision=precision, seed=seed, seconds=learning, steps=steps, curve=curve)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each case: each run thin, the mean over the seeds thick."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(1, len(cases), figsize=(4.5 * len(cases), 3.2), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        for precision, color in zip(PRECISIONS, ("#4269d0", "#ff725c"), strict=True):
            runs = [row for row in rows if (row["case"], row["precision"]) == (case, precision)]
            curves = np.array([row["curve"] for row in runs])
            x = np.linspace(0, runs[0]["steps"], curves.shape[1] + 1)[1:]
            axis.plot(x, curves.T, color=color, alpha=0.35, linewidth=1)
            axis.plot(x, curves.mean(0), color=color, linewidth=2.2, label=f"{precision}, mean of {len(runs)} seeds")
        axis.set(title=case, xlabel="environment steps", ylabel=CASES[case][4].replace("_", " "))
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/precision.json")
    parser.add_argument("--figure", type=Path, help="to draw, such as docs/precision.png; default: none")
    args = parser.parse_args()
    keep_memory()
    th.set_num_threads(args.threads)

    rows = [train(case, precision, seed) for case in args.only for seed in args.seeds for precision in PRECISIONS]
    for case in args.only:
        last = {
            precision: [row["curve"][-1] for row in rows if (row["case"], row["precision"]) == (case, precision)]
            for precision in PRECISIONS
        }
        print(
            case,
            {precision: f"{statistics.mean(v):.2f} ({min(v):.2f} - {max(v):.2f})" for precision, v in last.items()},
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(threads=args.threads, torch=th.__version__, rows=rows), indent=1))
    if args.figure:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(rows).savefig(args.figure, dpi=130)


if __name__ == "__main__":
    main()
