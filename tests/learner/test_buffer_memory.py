"""The memory of a replay buffer is taken when something is stored, not where a model only acts."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from point_mass import PointMass, make_point_mass_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import ConfigurationError, MultiTaskReplayBuffer, MultiTaskSAC, TaskEnv

M = 2
ROWS = 4 * 100_000 * (2 + 2 + 2)  # bytes: state, action, reward, and the index of the next state


def make_model(env: Any, **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(batch_size=2 * M, learning_starts=2 * M, device="cpu", **kwargs)
    return MultiTaskSAC("MTMlpPolicy", env, policy_kwargs=dict(net_arch=[4]), **options)


def taken(model: MultiTaskSAC) -> int:
    """Bytes of the buffer, but for what depends on the number of tasks alone."""
    assert isinstance(model.replay_buffer, MultiTaskReplayBuffer)
    return model.replay_buffer.nbytes - 8 * M


def test_a_model_that_acts_takes_none(tmp_path: Path) -> None:
    model = make_model(make_point_mass_env(M), buffer_size=100_000)
    assert taken(model) == 0
    model.learn(6 * M)
    assert taken(model) >= ROWS
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model")
    loaded.predict(make_point_mass_env(M).reset())
    loaded.save(tmp_path / "again")
    assert (taken(loaded), loaded.buffer_size) == (0, 100_000)
    again = MultiTaskSAC.load(tmp_path / "again", make_point_mass_env(M))
    assert taken(again) == 0
    again.learn(6 * M, reset_num_timesteps=False)
    assert taken(again) >= ROWS


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_a_model_that_acts_on_a_gpu_takes_none(tmp_path: Path) -> None:
    make_model(make_point_mass_env(M), buffer_size=10_000_000).save(tmp_path / "model")
    before = th.cuda.memory_allocated()
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), "cuda", buffer_device="cuda")
    assert th.cuda.memory_allocated() - before < 10_000_000
    loaded.learn(6 * M, reset_num_timesteps=False)
    assert th.cuda.memory_allocated() - before > 100 * ROWS


def test_memory_that_is_not_there_is_missed_before_anything_is_collected() -> None:
    width = 65_000  # times the largest buffer: more than a process can address
    makers = [
        partial(TaskEnv, gym.wrappers.TimeLimit(PointMass(task), 20), task, ["a", "b"], width=width) for task in (0, 1)
    ]
    env = DummyVecEnv(makers)  # type: ignore[arg-type]
    model = make_model(env, buffer_size=2**31 - 1)
    with pytest.raises(
        ConfigurationError, match=r"buffer_size=2147483647 needs \d{6}\.\d GB on cpu.*lower buffer_size"
    ):
        model.learn(10)
    assert (model.num_timesteps, model._last_obs) == (0, None)


def test_files_of_a_buffer_without_transitions() -> None:
    model = make_model(make_point_mass_env(M), buffer_size=1000)
    content = pickle.dumps(model.replay_buffer)
    assert len(content) < 3000
    model.replay_buffer = pickle.loads(content)
    assert taken(model) == 0
    model.learn(30 * M)
    assert isinstance(model.replay_buffer, MultiTaskReplayBuffer)
    assert model.replay_buffer.size_per_task().tolist() == [30] * M
    empty = make_model(make_point_mass_env(M), buffer_size=1000).replay_buffer
    assert isinstance(empty, MultiTaskReplayBuffer)
    segment = empty.segment()
    assert segment is not None
    model.replay_buffer.restore([segment], empty.head())
    assert model.replay_buffer.size() == 0
    model.learn(5 * M)
    assert model.replay_buffer.size_per_task().tolist() == [5] * M
