"""SB3's contract for files and parameters: what is saved is what is loaded."""

from __future__ import annotations

import io
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from point_mass import PointMass, make_point_mass_env
from sb3_contract import M, actions, differing, every_policy, flat, is_same, make_model
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import ConfigurationError, FileError, MultiTaskReplayBuffer, SoftModSAC, TaskEnv

# -------------------------------------------------------------------------------------------------------- files


@every_policy
def test_save_and_load(policy: str, tmp_path: Path) -> None:
    model = make_model(policy).learn(20 * M)
    model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    to_act, to_learn = SoftModSAC.load(tmp_path / "model"), SoftModSAC.load(str(tmp_path / "model.zip"))
    to_learn.set_env(make_point_mass_env(M))
    for loaded in (to_act, to_learn, SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M, 2))):
        assert differing(loaded, model) == []
        np.testing.assert_array_equal(actions(loaded), actions(model))
        assert loaded.num_timesteps == 20 * M
    to_learn.learn(10 * M, reset_num_timesteps=False)
    assert to_learn.num_timesteps == 30 * M
    assert to_learn._n_updates > model._n_updates
    assert any("policy" in name for name in differing(to_learn, model))


@every_policy
def test_a_loaded_model_learns_as_the_one_that_was_saved(policy: str, tmp_path: Path) -> None:
    """With the state of its optimizers."""
    model = make_model(policy).learn(20 * M)
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M))
    loaded.replay_buffer = model.replay_buffer
    for going_on in (model, loaded):
        th.manual_seed(3)
        going_on.train(gradient_steps=3, batch_size=2 * M)
    assert differing(loaded, model) == []


def test_file_objects(tmp_path: Path) -> None:
    model = make_model().learn(10 * M)
    memory = io.BytesIO()
    model.save(memory)
    with (tmp_path / "file").open("wb") as file:
        model.save(file)
    memory.seek(0)
    with (tmp_path / "file").open("rb") as file:
        for loaded in (SoftModSAC.load(memory), SoftModSAC.load(file)):
            assert differing(loaded, model) == []
        assert not file.closed
    model.set_parameters(memory)
    assert not memory.closed
    for wrong in (io.StringIO(), (tmp_path / "file").open("rb"), 3, None):
        with pytest.raises(FileError, match="A model is saved to a path or a binary file"):
            model.save(wrong)
    with pytest.raises(FileError, match="A file is loaded from a path or a binary file"):
        SoftModSAC.load(io.StringIO())


def test_saving_makes_folders_and_replaces_a_model_as_a_whole(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "some" / "where" / "model")
    before = (tmp_path / "some" / "where" / "model.zip").read_bytes()
    model.notes = lambda: (_ for _ in ())  # type: ignore[attr-defined]
    model.stream = (_ for _ in ())  # type: ignore[attr-defined]  # which cannot be pickled
    with pytest.raises(TypeError, match="pickle"):
        model.save(tmp_path / "some" / "where" / "model")
    assert (tmp_path / "some" / "where" / "model.zip").read_bytes() == before
    assert len(list((tmp_path / "some" / "where").iterdir())) == 1


def test_exclude_and_include(tmp_path: Path) -> None:
    model = make_model(gamma=0.5, learning_rate=0.1).learn(10 * M)
    model.save(tmp_path / "without", exclude=["learning_rate", "gamma"])
    model.save(tmp_path / "with", include=["replay_buffer"])
    without = SoftModSAC.load(tmp_path / "without")
    assert (without.gamma, without.learning_rate) == (0.99, 3e-4)  # the defaults
    loaded = SoftModSAC.load(tmp_path / "with")
    assert (loaded.gamma, loaded.learning_rate) == (0.5, 0.1)
    assert isinstance(loaded.replay_buffer, MultiTaskReplayBuffer)
    assert loaded.replay_buffer.size() == model.replay_buffer.size() == 10 * M  # type: ignore[union-attr]
    assert SoftModSAC.load(tmp_path / "without").replay_buffer.size() == 0  # type: ignore[union-attr]


def test_arguments_of_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().learn(10 * M).save(tmp_path / "model")
    other = SoftModSAC.load(tmp_path / "model", custom_objects={"learning_rate": 0.5, "tau": 0.25}, gamma=0.75)
    assert (other.learning_rate, other.lr_schedule(1), other.tau, other.gamma) == (0.5, 0.5, 0.25, 0.75)
    SoftModSAC.load(tmp_path / "model", print_system_info=True)
    printed = capsys.readouterr().out
    assert "CURRENT SYSTEM INFO" in printed
    assert "SAVED MODEL SYSTEM INFO" in printed
    with pytest.raises(ConfigurationError, match=r"policy_kwargs=\{'net_arch': \[6, 5\]\}, not .* differs in net_arch"):
        SoftModSAC.load(tmp_path / "model", policy_kwargs=dict(net_arch=[3]))
    names = [f"corner-{i}" for i in range(M)]
    wide = [partial(TaskEnv, gym.wrappers.TimeLimit(PointMass(i), 20), i, names, width=5) for i in range(M)]
    with pytest.raises(
        ConfigurationError, match=r"observation space of the model is Box\(.*\(5,\).*, that of the env Box\(.*\(8,\)"
    ):
        SoftModSAC.load(tmp_path / "model", env=DummyVecEnv(wide))  # type: ignore[arg-type]


@every_policy
def test_replay_buffer_files(policy: str, tmp_path: Path) -> None:
    model = make_model(policy).learn(10 * M)
    model.save_replay_buffer(tmp_path / "below" / "buffer")
    assert (tmp_path / "below" / "buffer.pkl").exists()
    other = make_model(policy)
    other.load_replay_buffer(tmp_path / "below" / "buffer")
    assert isinstance(other.replay_buffer, MultiTaskReplayBuffer)
    assert other.replay_buffer.size_per_task().tolist() == [10] * M
    th.manual_seed(0)
    first = model.replay_buffer.sample(2 * M)  # type: ignore[union-attr]
    th.manual_seed(0)
    second = other.replay_buffer.sample(2 * M)
    assert all(th.equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))
    memory = io.BytesIO()
    model.save_replay_buffer(memory)
    memory.seek(0)
    other.load_replay_buffer(memory)
    other.learn(20 * M, reset_num_timesteps=False)
    assert other.replay_buffer.size_per_task().tolist() == [30] * M


# --------------------------------------------------------------------------------------------------- parameters


@every_policy
def test_parameters(policy: str) -> None:
    model, other = make_model(policy).learn(10 * M), make_model(policy, seed=1).learn(20 * M)
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
    assert not np.array_equal(actions(other), actions(model))
    other.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    np.testing.assert_array_equal(actions(other), actions(model))
    steps = flat(other.get_parameters()["actor.optimizer"])["/state/0/step"]
    assert steps == other._n_updates  # the optimizers are left as they were
    other.set_parameters(parameters)
    ours, theirs = flat(other.get_parameters()), flat(parameters)
    assert all(is_same(ours[name], value) for name, value in theirs.items())
    other.train(gradient_steps=1, batch_size=2 * M)


def test_wrong_parameters_change_nothing() -> None:
    model = make_model().learn(10 * M)
    before = flat(deepcopy(model.get_parameters()))
    good = model.get_parameters()
    name, weight = next(iter(good["policy"].items()))
    zeros = {key: th.zeros_like(value) for key, value in good["policy"].items()}
    wrong: list[tuple[Any, bool, str]] = [
        ({}, True, r"actor\.optimizer is missing; critic\.optimizer is missing; .*policy is missing"),
        ({"policy": zeros}, True, r"actor\.optimizer is missing"),
        ({**good, "polisy": {}}, True, "there is no polisy"),
        ({"polisy": {}}, False, "there is no polisy"),
        ({**good, "policy": {**zeros, name: weight[..., :1]}}, True, f"policy.{name} is of shape"),
        ({"policy": {**zeros, name: weight[..., :1]}}, False, f"policy.{name} is of shape"),
        ({**good, "policy": {**zeros, "more": weight}}, True, "in policy, there is no more"),
        ({**good, "policy": zeros, "actor.optimizer": {}}, True, r"actor\.optimizer is the state of another optimizer"),
        ("zeros", True, "Cannot read zeros"),
    ]
    for parameters, exact_match, message in wrong:
        with pytest.raises(ConfigurationError, match=message):
            model.set_parameters(parameters, exact_match=exact_match)
        for key, value in flat(model.get_parameters()).items():
            assert is_same(value, before[key]), key
    model.set_parameters({"policy": {name: zeros[name]}}, exact_match=False)  # some of them
    assert not model.policy.state_dict()[name].any()
