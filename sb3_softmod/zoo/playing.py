"""What ``sb3-softmod enjoy`` does."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from sb3_softmod.algorithm.pretrained import pretrained, pretrained_card
from sb3_softmod.common.checks import require_choice
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError, FileError, nearest
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.registered import make_env, task_names
from sb3_softmod.envs.task_sets import get_task_set
from sb3_softmod.evaluation.evaluate import evaluate_tasks
from sb3_softmod.evaluation.result import percent
from sb3_softmod.evaluation.video import Filmed, VideoFile
from sb3_softmod.zoo.key_values import key_values
from sb3_softmod.zoo.registration import ALGOS, register_methods, short_env_ids

_ROW = "{:<30} {:>8} {:>10}"


def play(args: argparse.Namespace) -> None:
    """Play each task in an env of its own, wrapped as in training, and print how it went.

    :param args: the options of the command
    :raises ConfigurationError: for bad input, before anything is played
    """
    register_methods(args.gym_packages)
    check_device("--device", args.device)
    policy = _of_run(args) if args.pretrained is None else _of_package(args)
    name, task_set = policy.name, get_task_set(policy.name)
    names = task_names(task_set)
    if args.task is not None and args.task not in names:
        raise ConfigurationError(f"Unknown task {args.task!r} of {name}: {nearest(args.task, names)}")
    hyperparams, env_kwargs = policy.envs()
    env_kwargs |= key_values("--env-kwargs", args.env_kwargs)
    if args.seed is not None:
        env_kwargs["seed"] = args.seed
    task_set.arguments(env_kwargs)
    th.set_num_threads(args.num_threads)
    set_random_seed(env_kwargs["seed"])
    model = policy.load()
    print(f"{policy.title}, {args.episodes} episodes a task, seed {env_kwargs['seed']}\n")
    print(_ROW.format("task", "success", "return"))
    results = []
    with ExitStack() as stack:
        stack.enter_context(short_env_ids())
        video = None
        if args.video is not None:
            env_kwargs["render_mode"] = "rgb_array"
            video = stack.enter_context(VideoFile(args.video))
        for task in names if args.task is None else [args.task]:
            env = _make_env(name, policy.statistics, hyperparams, {**env_kwargs, "task": task}, model)
            found = evaluate_tasks(
                model,
                env if video is None else Filmed(env, video, task),
                n_eval_episodes=args.episodes,
                deterministic=not args.stochastic,
            )
            env.close()
            index = found.task_names.index(task)
            results.append((found.success_rate[index], found.mean_return[index]))
            _print_row(task, *results[-1])
    if len(results) > 1:
        _print_row("mean", *np.mean(results, 0))
    if args.video is not None:
        print(f"\nThe first episode of each task is in {args.video}")


@dataclass(frozen=True)
class _Policy:
    """What is played.

    :param title: to print
    :param name: of its task set
    :param statistics: the folder of those of the observations that RL Zoo saved
    :param envs: the hyperparameters, and apart from them what the envs of its training were made with
    :param load: the model
    """

    title: str
    name: str
    statistics: str | None
    envs: Callable[[], tuple[dict[str, Any], dict[str, Any]]]
    load: Callable[[], Any]


def _of_package(args: argparse.Namespace) -> _Policy:
    """A policy that comes with the package."""
    card = pretrained_card(args.pretrained)
    title, kwargs = f"{args.pretrained} (pretrained)", dict(card["env_kwargs"])
    load = partial(pretrained, args.pretrained, device=args.device)
    return _Policy(title, card["task_set"], None, lambda: ({}, {"seed": 0, **kwargs}), load)


def _of_run(args: argparse.Namespace) -> _Policy:
    """The policy of a run."""
    name = EnvironmentName(get_task_set(args.env).name)
    path, run = _find(args, name)
    load = partial(ALGOS[args.algo].load, path, device=args.device)
    return _Policy(path, name, str(run / name), partial(_of_training, run / name), load)


def _find(args: argparse.Namespace, name: EnvironmentName) -> tuple[str, Path]:
    """The model, and the folder of its run."""
    require_choice("algo", args.algo, ALGOS)
    try:
        with redirect_stdout(io.StringIO()):
            which = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
            _, model, run = get_model_path(args.exp_id, str(args.folder), args.algo, name, *which)
    except (AssertionError, ValueError) as error:
        runs = sorted(str(path.parent) for path in args.folder.glob("*/*/run.json"))
        raise ConfigurationError(f"{error}. Runs in {args.folder}: {', '.join(runs) or 'none'}.") from error
    return model, Path(run)


def _of_training(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The hyperparameters of a run, and apart from them what its envs were made with."""
    try:
        hyperparams, _ = get_saved_hyperparams(str(folder), test_mode=True)
        return hyperparams, {"seed": 0, **hyperparams.pop("env_kwargs", {})}
    except Exception as error:  # whatever the file led to
        raise FileError(f"{folder / 'config.yml'} is broken ({type(error).__name__}: {error}).") from error


def _make_env(
    name: str, saved: str | None, hyperparams: dict[str, Any], env_kwargs: dict[str, Any], model: Any
) -> VecEnv:
    """One env, wrapped and normalised as in training."""
    try:
        with redirect_stdout(io.StringIO()):
            if "+" in name:  # of a policy that was adapted: no id of gymnasium
                env: VecEnv = DummyVecEnv([lambda: Monitor(make_env(name, **env_kwargs))])
            else:
                env = create_test_env(
                    name,
                    stats_path=saved,
                    seed=env_kwargs["seed"],
                    should_render=False,
                    hyperparams=dict(hyperparams),
                    env_kwargs=env_kwargs,
                )
    except ConfigurationError:
        raise
    except ValueError as error:  # no statistics: the run ended before it saved any
        raise ConfigurationError(str(error)) from error
    normalize, statistics = unwrap_vec_normalize(env), getattr(model, "normalization", None)
    if normalize is None and statistics is not None:
        env = normalize = MultiTaskVecNormalize(env, training=False, norm_reward=False)
    if isinstance(normalize, MultiTaskVecNormalize) and statistics is not None:
        normalize.set_statistics(statistics)  # the file has those of the last model, this may be another
    return env


def _print_row(task: str, success: float, mean_return: float) -> None:
    print(_ROW.format(task, percent(success), f"{mean_return:.1f}"), flush=True)
