"""A training that is interrupted and resumed is, bit for bit, the one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from resumable_run import Runs, everything, logged, make_env, make_model
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from worker_envs import M

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize, SoftModSAC
from sb3_softmod.callbacks import MultiTaskEvalCallback
from sb3_softmod.checkpoint_callback import CheckpointCallback
from sb3_softmod.errors import CheckpointError

@pytest.fixture(autouse=True)
def _nothing_is_inexact() -> Iterator[None]:
    """A warning says that a run does not go on exactly: none where none is expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(bit for bit|begin anew|new episodes|went another way|cannot be used)")
        yield


# ------------------------------------------------------------------ in one process


def changing_rate(remaining: float) -> float:
    return 1e-3 * remaining + 1e-4


def noise() -> OrnsteinUhlenbeckActionNoise:
    return OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3))


def make_sb3_model(env: Any, **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(learning_starts=12, batch_size=12, buffer_size=72, seed=0)
    return MultiTaskSAC("MlpPolicy", env, policy_kwargs=dict(net_arch=[8]), **options, **kwargs)


def make_hard_routing_model(env: Any) -> MultiTaskSAC:
    sizes = dict(num_layers=2, num_modules=2, module_dim=8, embedding_dim=8)
    return MultiTaskSAC(
        "HardRoutingPolicy", env, learning_starts=12, batch_size=12, buffer_size=72, seed=0, policy_kwargs=sizes
    )


#: By what is special: how the envs and how the model are made.
TRAININGS: dict[str, tuple[Callable[[], Any], Callable[[Any], MultiTaskSAC]]] = {
    "nothing": (make_env, make_model),
    "overlap, several gradient steps": (make_env, partial(make_model, overlap=True, gradient_steps=3)),
    "taking turns": (partial(make_env, n_envs=2), partial(make_model, overlap=True)),
    "one env, fixed temperatures": (partial(make_env, n_envs=1), partial(make_model, ent_coef=[0.1, 0.2, 0.3])),
    "several envs a task, weights": (
        partial(make_env, envs_per_task=2),
        partial(make_model, loss_weighting="alpha", max_grad_norm=1.0),
    ),
    "normalised": (lambda: MultiTaskVecNormalize(make_env()), partial(make_model, overlap=True)),
    "normalised by task": (lambda: MultiTaskVecNormalize(make_env(n_envs=2), obs_statistics="per-task"), make_model),
    "gradient surgery": (make_env, partial(make_model, gradient_surgery="pcgrad")),
    "action noise, learning rate": (
        make_env,
        lambda env: make_model(env, action_noise=noise(), learning_rate=changing_rate),
    ),
    "gSDE": (make_env, partial(make_sb3_model, use_sde=True, sde_sample_freq=2, train_freq=3)),
    "train_freq": (make_env, partial(make_model, train_freq=3, gradient_steps=3, target_update_interval=2)),
    "train_freq, overlap": (make_env, partial(make_model, train_freq=(2, "step"), gradient_steps=-1, overlap=True)),
    "episodes": (partial(make_env, n_envs=1), partial(make_model, train_freq=(1, "episode"), gradient_steps=5)),
    "SB3's buffer": (make_env, partial(make_sb3_model, replay_buffer_class=ReplayBuffer)),
    "drawn routes": (make_env, make_hard_routing_model),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_from_any_moment(name: str, tmp_path: Path) -> None:
    env_of, model_of = TRAININGS[name]
    alone = model_of(env_of())
    steps = 30 * M if alone.n_envs < M else 30 * alone.n_envs
    log_alone = logged(alone)
    alone.learn(steps, log_interval=1)
    assert len(log_alone) >= 2
    assert alone._n_updates >= 10
    expected = everything(alone)

    watched = model_of(env_of())
    log = logged(watched)
    watched.learn(steps, CheckpointCallback(tmp_path / "all", save_freq=2, keep_last=1000), log_interval=1)
    assert everything(watched) == expected
    assert log == log_alone

    moments = sorted((tmp_path / "all" / "checkpoints").glob("[0-9]*"))
    rng = random.Random(name)
    for number, part in enumerate((0.05, 0.3, rng.uniform(0.3, 0.95))):  # the first before it learns
        moment = moments[int(part * len(moments))]
        path = tmp_path / str(number)
        model = type(watched).resume(moment, env_of())
        assert model.num_timesteps == int(moment.name) > 0
        log = logged(model)
        model.learn(callback=CheckpointCallback(path, save_freq=3, keep_last=1000), log_interval=1)
        assert everything(model) == expected, moment.name
        assert log == [line for line in log_alone if line["step"] > int(moment.name)]
        if number == 1:  # once more
            again = rng.choice(sorted((path / "checkpoints").glob("[0-9]*")))
            model = type(watched).resume(again, env_of())
            model.learn(callback=CheckpointCallback(tmp_path / "twice"), log_interval=1)
            assert everything(model) == expected, again.name


def test_a_finished_training(tmp_path: Path) -> None:
    """The second of two parts, of which only what is left is learned."""
    model = make_model(make_env(), overlap=True)
    callback = CheckpointCallback(tmp_path, save_freq=7)
    model.learn(40, callback)
    model.learn(50, callback, reset_num_timesteps=False)
    expected = everything(model)
    for _ in range(2):
        model = SoftModSAC.resume(tmp_path, make_env())
        assert model.num_timesteps == 84
        model.learn(callback=CheckpointCallback(tmp_path, save_freq=7))
        assert model.num_timesteps == 93
        assert everything(model) == expected


def test_a_training_that_goes_on_is_one_training(tmp_path: Path) -> None:
    """One callback after the other, and parts without any, in one folder: each checkpoint holds all that came before."""
    model = make_model(make_env(), buffer_size=3000)
    model.learn(60, CheckpointCallback(tmp_path, save_freq=10, keep_last=1))
    model.learn(60, CheckpointCallback(tmp_path, save_freq=10, keep_last=1), reset_num_timesteps=False)
    path = tmp_path / "checkpoints"
    shutil.copytree(path, tmp_path / "copy" / "checkpoints")
    resumed = SoftModSAC.resume(tmp_path / "copy", make_env())
    resumed.learn(callback=CheckpointCallback(tmp_path / "copy"))
    resumed.learn(45, reset_num_timesteps=False)
    resumed.learn(45, CheckpointCallback(tmp_path / "copy", save_freq=10, keep_last=1), reset_num_timesteps=False)
    expected = everything(resumed)
    last = SoftModSAC.resume(tmp_path / "copy", make_env())
    last.learn(callback=CheckpointCallback(tmp_path / "copy"))
    assert everything(last) == expected
    assert last.replay_buffer is not None
    assert last.replay_buffer.size() == 210
