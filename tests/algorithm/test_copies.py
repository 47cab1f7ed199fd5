"""``copy.deepcopy(model)``: another training, that goes on from the same place and leaves the first one alone."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from resumable_run import everything, make_env, make_model
from small_networks import TINY
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from worker_envs import M

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecNormalize
from sb3_softmod.common.errors import CheckpointError
from sb3_softmod.policies import POLICIES
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback


def go_on(model: MultiTaskSAC, steps: int = 8) -> dict[str, bytes]:
    """Learn with random numbers that depend on nothing before; all that the model then is."""
    model.set_random_seed(7)
    model.learn(steps * M, reset_num_timesteps=False)
    return everything(model)


def state(model: MultiTaskSAC) -> list[Any]:
    """What a gradient step changes, as it is now."""
    optimizers = [model.actor.optimizer, model.critic.optimizer]
    tensors = [*model.policy.state_dict().values()]
    for optimizer in optimizers:
        tensors += [x for each in optimizer.state_dict()["state"].values() for x in each.values()]
    buffer = model.replay_buffer
    assert isinstance(buffer, MultiTaskReplayBuffer)
    return [*(tensor.numpy().tobytes() for tensor in tensors), buffer.added_per_task.tobytes(), model._n_updates]


@pytest.mark.parametrize("policy", [*POLICIES, "MlpPolicy"])
def test_the_next_gradient_steps_are_the_same(policy: str) -> None:
    env = make_point_mass_env(M)
    kwargs: dict[str, Any] = dict(batch_size=2 * M, learning_starts=2 * M, buffer_size=60, seed=0, device="cpu")
    model = MultiTaskSAC(policy, env, policy_kwargs=TINY.get(policy, dict(net_arch=[6])), **kwargs).learn(6 * M)
    before = state(model)
    copy = deepcopy(model)
    assert state(copy) == before
    th.manual_seed(3)
    copy.train(gradient_steps=3, batch_size=2 * M)
    assert state(model) == before
    after = state(copy)
    assert after != before
    th.manual_seed(3)
    model.train(gradient_steps=3, batch_size=2 * M)
    assert state(model) == after
    assert state(copy) == after


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlap": dict(overlap=True),
    "fixed temperatures": dict(ent_coef=0.1),
    "bf16": dict(precision="bf16"),
    "a buffer of SB3": dict(replay_buffer_class=ReplayBuffer),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("when", ["before", "in the middle", "between episodes"])
def test_the_copy_learns_what_the_original_would(options: str, when: str) -> None:
    model = make_model(make_env(), **OPTIONS[options])
    if when != "before":
        model.learn((7 if when == "in the middle" else 20) * M)
    copy = deepcopy(model)
    assert copy.get_env() is not model.get_env()
    counts = (copy.num_timesteps, copy._n_updates)
    expected = go_on(model)
    assert (copy.num_timesteps, copy._n_updates) == counts
    assert go_on(copy) == expected


def test_the_copy_of_normalised_envs() -> None:
    model = make_model(MultiTaskVecNormalize(make_env(), "per-task")).learn(7 * M)
    copy = deepcopy(model)
    ours, theirs = model.get_vec_normalize_env(), copy.get_vec_normalize_env()
    assert isinstance(ours, MultiTaskVecNormalize)
    assert isinstance(theirs, MultiTaskVecNormalize)
    kept = deepcopy(ours.statistics())
    expected = go_on(copy)
    for name in ("obs_rms", "ret_rms"):
        for own, before in zip(getattr(ours, name), kept[name], strict=True):
            np.testing.assert_array_equal(own.mean, before.mean)
            assert own.count == before.count < getattr(theirs, name)[0].count
    assert go_on(model) == expected


def test_the_copy_of_envs_in_workers() -> None:
    """Workers of its own: closing one leaves the other."""
    model = make_model(make_env(n_workers=1)).learn(7 * M)
    copy = deepcopy(model)
    expected = go_on(copy)
    assert copy.env is not None
    copy.env.close()
    assert go_on(model) == expected
    assert model.env is not None
    model.env.close()


def test_envs_that_take_turns_and_seeds_to_come() -> None:
    env = make_env(n_envs=2)
    env.seed(5)
    copy = deepcopy(env)
    for each in (env, copy):
        each.reset()
    copies = [copy, deepcopy(env)]
    action = np.full((2, 2), 0.5, np.float32)
    for _ in range(45):
        expected, *others = [each.step(action) for each in (env, *copies)]
        for other in others:
            np.testing.assert_array_equal(other[0], expected[0])
            np.testing.assert_array_equal(other[1], expected[1])
    assert [each.episode_table() for each in copies] == [env.episode_table()] * 2


def test_log_files_and_checkpoints_stay_those_of_the_original(tmp_path: Path) -> None:
    model = make_model(make_env())
    model.set_logger(configure(str(tmp_path / "log"), ["csv", "log"]))
    model.learn(12 * M, CheckpointCallback(tmp_path, save_freq=5), log_interval=1)
    written = (tmp_path / "log" / "progress.csv").read_text()
    copy = deepcopy(model)
    copy.learn(30 * M, log_interval=1, reset_num_timesteps=False)
    assert (tmp_path / "log" / "progress.csv").read_text() == written
    with pytest.raises(CheckpointError, match="holds the checkpoints of another training"):
        copy.learn(5 * M, CheckpointCallback(tmp_path), reset_num_timesteps=False)
    model.learn(30 * M, CheckpointCallback(tmp_path, save_freq=5), log_interval=1, reset_num_timesteps=False)
    assert len((tmp_path / "log" / "progress.csv").read_text()) > len(written)


def test_a_resumed_model_before_it_goes_on(tmp_path: Path) -> None:
    make_model(make_env()).learn(12 * M, CheckpointCallback(tmp_path, save_freq=5))
    resumed = make_model(make_env()).resume(tmp_path, make_env())
    copy = deepcopy(resumed)
    found = []
    for each in (resumed, copy):
        each.set_random_seed(7)
        each.learn()
        found.append(everything(each))
    assert found[0] == found[1]
    assert copy.num_timesteps == 12 * M


def test_copies_of_copies() -> None:
    model = make_model(make_env()).learn(7 * M)
    copies = [deepcopy(model), deepcopy(deepcopy(model))]
    expected = go_on(model)
    assert [go_on(copy) for copy in copies] == [expected] * 2
