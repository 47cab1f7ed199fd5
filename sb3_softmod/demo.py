"""The demo: soft modularization learns three Meta-World tasks in minutes."""

from __future__ import annotations

import time
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import torch as th
from rich.console import Console
from rich.table import Table
from tqdm import TqdmExperimentalWarning

from sb3_softmod.algorithm.softmod_sac import SoftModSAC
from sb3_softmod.common.checks import require_integer
from sb3_softmod.envs.make import make_metaworld_env
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.evaluation.evaluate import TaskEvaluation, evaluate_tasks, rollout
from sb3_softmod.evaluation.result import percent
from sb3_softmod.routing.network_figure import draw_routing
from sb3_softmod.routing.routes import RoutingStatistics, sample_routing

TASKS = "MT3"


def run_demo(out: Path, *, vector_steps: int, n_eval_episodes: int, seed: int) -> tuple[TaskEvaluation, TaskEvaluation]:
    """Train, evaluate before and after, and write model, logs and a picture of the routing.

    :param out: folder for the runs; each call makes a new one in it, the first free ``run-1``, ``run-2``, ...
    :param vector_steps: steps of every env, and gradient steps
    :param n_eval_episodes: episodes of each task in an evaluation
    :param seed: of everything
    :return: the evaluations before and after training
    :raises ConfigurationError: for fewer than one step or episode
    """
    require_integer("--steps", vector_steps, 1)
    require_integer("--episodes", n_eval_episodes, 1)
    warnings.filterwarnings("ignore", category=TqdmExperimentalWarning)  # SB3's progress bar is "experimental"
    console = Console()
    folder = next(path for number in count(1) if not (path := out / f"run-{number}").exists())
    folder.mkdir(parents=True)
    th.set_num_threads(1)  # enough for networks of this size; the other core steps the envs meanwhile
    env = MultiTaskVecNormalize(make_metaworld_env(TASKS, seed=seed, envs_per_task=3), norm_reward=False)
    model = SoftModSAC(
        "SoftModPolicy",
        env,
        learning_rate=6e-4,
        gamma=0.97,
        tau=0.01,
        n_steps=3,
        batch_size=64 * env.num_tasks,
        critic="categorical",
        reward_scaling="per-task",
        ent_coef="auto_0.03",
        target_entropy="auto_0.5",
        policy_delay=2,
        loss_weighting="uniform",
        overlap=True,
        precision="fastest",
        policy_kwargs=dict(
            embedding_dim=128,
            num_layers=3,
            num_modules=4,
            module_dim=64,
            critic_options=dict(normalization="layer"),
            optimizer_kwargs=dict(weight_decay=1e-4, decoupled_weight_decay=True),
        ),
        tensorboard_log=str(folder / "tensorboard"),
        seed=seed,
    )
    console.print(
        f"SoftModSAC on {', '.join(model.task_names)}, random goals, {env.num_envs} envs. "
        f"About 5 minutes on 2 cores; results go to {folder}/"
    )
    # Other goals than those of training, and the statistics of training.
    test_env = MultiTaskVecNormalize(make_metaworld_env(TASKS, seed=seed + 1, envs_per_task=3), training=False)
    test_env.set_statistics(env.statistics())
    untrained = evaluate_tasks(model, test_env, n_eval_episodes=n_eval_episodes)
    start = time.perf_counter()
    model.learn(vector_steps * env.num_envs, progress_bar=True)
    minutes = (time.perf_counter() - start) / 60
    model.save(folder / "model")
    test_env.set_statistics(env.statistics())
    trained = evaluate_tasks(model, test_env, n_eval_episodes=n_eval_episodes)

    actor, *_ = sample_routing(model, *rollout(model, test_env, steps=200), trained.task_names)
    env.close()
    test_env.close()
    draw_routing(RoutingStatistics.of(actor)).savefig(folder / "routing.png", dpi=150)
    console.print(_table(untrained, trained))
    console.print(f"Trained {model.num_timesteps:,} environment steps in {minutes:.1f} minutes. Written to {folder}/:")
    console.print(f"  model.zip    SoftModSAC.load('{folder / 'model'}', env='{TASKS}')")
    console.print("  routing.png  the learned routing of each task")
    console.print(f"  tensorboard  tensorboard --logdir {folder / 'tensorboard'}")
    return untrained, trained


def _table(untrained: TaskEvaluation, trained: TaskEvaluation) -> Table:
    table = Table(title=f"{trained.episodes[0]} episodes a task with goals that training did not use")
    table.add_column("task", no_wrap=True)
    for column in ("success\nuntrained", "success\ntrained", "return\nuntrained", "return\ntrained"):
        table.add_column(column, justify="right")
    columns = (untrained.success_rate, trained.success_rate, untrained.mean_return, trained.mean_return)
    rows: list[tuple[Any, ...]] = [
        *zip(trained.task_names, *columns, strict=True),
        ("mean", *(sum(c) / len(c) for c in columns)),
    ]
    for name, success_before, success_after, return_before, return_after in rows:
        table.add_row(
            str(name), percent(success_before), percent(success_after), f"{return_before:.0f}", f"{return_after:.0f}"
        )
    return table
