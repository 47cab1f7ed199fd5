"""Action noise: each env has its own, however many envs the model learned in before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from point_mass import make_point_mass_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise

from sb3_softmod import MultiTaskSAC
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback

NORMAL = NormalActionNoise(np.zeros(2), np.full(2, 0.1))
WANDERING = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.1))


def make_model(tasks: int, copies: int, noise: Any = NORMAL) -> MultiTaskSAC:
    return MultiTaskSAC(
        "MTMlpPolicy",
        make_point_mass_env(tasks, copies),
        batch_size=2 * tasks,
        learning_starts=0,
        buffer_size=100,
        policy_kwargs=dict(net_arch=[4]),
        action_noise=noise,
        seed=0,
        device="cpu",
    )


def learns(model: MultiTaskSAC, n_envs: int) -> None:
    """The model learns in so many envs, each with a noise of its own."""
    model.learn(6 * n_envs, reset_num_timesteps=False)
    assert model.action_noise is not None
    noise = np.stack([model.action_noise() for _ in range(3)])
    assert noise.shape == ((3, n_envs, 2) if n_envs > 1 else (3, 2))
    assert len(np.unique(noise)) == noise.size


@pytest.mark.parametrize("noise", [NORMAL, WANDERING])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 3)])
def test_another_number_of_envs(noise: Any, tasks: int, before: int, after: int, tmp_path: Path) -> None:
    model = make_model(tasks, before, noise)
    model.learn(6 * tasks * before, CheckpointCallback(tmp_path, save_freq=3))
    learns(model, tasks * before)
    model.save(tmp_path / "model")
    env = make_point_mass_env(tasks, after)
    learns(MultiTaskSAC.load(tmp_path / "model", env), tasks * after)
    with pytest.warns(UserWarning, match="The run goes on with new episodes"):
        resumed = MultiTaskSAC.resume(tmp_path, env)
    learns(resumed, tasks * after)
    to_act = MultiTaskSAC.load(tmp_path / "model")
    to_act.set_env(make_point_mass_env(tasks, before))
    learns(to_act, tasks * before)


@pytest.mark.parametrize("envs", [1, 2, 3])
@pytest.mark.parametrize("made_for", [1, 2, 5])
def test_noise_that_was_made_for_another_number(envs: int, made_for: int) -> None:
    learns(make_model(1, envs, VectorizedActionNoise(NORMAL, made_for)), envs)


def test_noise_of_the_right_number_is_kept() -> None:
    """Its processes are where they are."""
    noise = VectorizedActionNoise(WANDERING, 2)
    model = make_model(2, 1, noise).learn(10)
    assert model.action_noise is noise


def test_looking_at_noise_draws_nothing() -> None:
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    model = make_model(1, 1, noise)
    model.seed = None
    model._setup_model()
    np.random.seed(3)
    model._setup_model()
    assert np.random.random() == expected
    assert not noise.noise_prev.any()
