"""SoftModSAC on MultiTaskVecEnv: learning meanwhile, fewer envs than tasks, workers that die."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import numpy as np
import pytest
from point_mass import make_point_mass_env, make_task
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from worker_envs import M, make_copy, make_troubled_env

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskVecEnv, SoftModSAC

SMALL: dict[str, Any] = dict(embedding_dim=12, module_dim=8)


def learn(env: MultiTaskVecEnv, steps: int, callback: BaseCallback | None = None, **kwargs: Any) -> SoftModSAC:
    options: dict[str, Any] = dict(batch_size=8 * M, learning_starts=10 * M, policy_kwargs=SMALL, seed=0)
    model = SoftModSAC("SoftModPolicy", env, **{**options, **kwargs}).learn(steps, callback)
    env.close()
    return model


def make_env(**kwargs: Any) -> MultiTaskVecEnv:
    return MultiTaskVecEnv([partial(make_copy, task) for task in range(M)], **kwargs)


def test_fewer_envs_than_tasks() -> None:
    """Learning waits until every task had its turn, and every batch is balanced all the same."""
    model = learn(make_env(n_envs=1, n_workers=0), 200, learning_starts=0)
    assert isinstance(model.replay_buffer, MultiTaskReplayBuffer)
    assert model.replay_buffer.size_per_task().tolist() == [80, 60, 60]
    assert model._n_updates == 200 - 2 * 20  # after the first step of the third task's first episode
    tasks = model.replay_buffer.sample(8 * M).observations[:, -M:].argmax(1)
    assert np.bincount(tasks.numpy()).tolist() == [8] * M


class Asked(DummyVecEnv):
    """Counts what it is asked between the steps."""

    questions = 0

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        self.questions += 1
        return super().get_attr(attr_name, indices)


def test_learning_meanwhile_asks_the_envs_nothing_between_their_steps() -> None:
    """Each question is a message to every process of SB3's SubprocVecEnv."""
    env = Asked([partial(make_task, task, M) for task in range(M)])
    options: dict[str, Any] = dict(batch_size=2 * M, learning_starts=M, policy_kwargs=SMALL, overlap=True, device="cpu")
    model = SoftModSAC("SoftModPolicy", env, **options).learn(2 * M, log_interval=None)
    asked = []
    for steps in (2, 20):
        env.questions = 0
        model.learn(steps * M, log_interval=None)
        asked.append(env.questions)
    assert asked[0] == asked[1]
    assert model._n_updates == 1 + 1 + 19  # the first step of the envs is before learning starts


def test_learning_meanwhile_goes_on_in_other_envs() -> None:
    envs = [make_point_mass_env(M) for _ in range(2)]
    options: dict[str, Any] = dict(batch_size=2 * M, learning_starts=M, policy_kwargs=SMALL, overlap=True, device="cpu")
    model = SoftModSAC("SoftModPolicy", envs[0], **options).learn(4 * M, log_interval=None)
    model.set_env(envs[1])
    envs[0].close()
    envs[0].step_async = None  # type: ignore[assignment, method-assign]  # or it would fail
    model.learn(4 * M, log_interval=None)
    assert model._n_updates == 3 + 3


class Killer(BaseCallback):
    """Kills the worker of the first env, once."""

    def _on_step(self) -> bool:
        if self.n_calls == 30:
            os.kill(self.training_env.env_method("pid", indices=0)[0], signal.SIGKILL)
        return True


def test_training_goes_on_after_a_worker_died(capsys: pytest.CaptureFixture[str]) -> None:
    env = make_troubled_env(n_workers=2, restart_failed=True)
    with pytest.warns(UserWarning, match="A worker died"):
        model = learn(env, 60 * 3 * M, Killer(), verbose=1)
    assert env.num_restarts == 1
    assert model.num_timesteps == 60 * 3 * M
    assert "env_restarts" in capsys.readouterr().out
    assert model.episode_statistics is not None
    assert max(model.episode_statistics.num_episodes()) - min(model.episode_statistics.num_episodes()) <= 1
