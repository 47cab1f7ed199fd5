"""What SB3 promises of its algorithms, for SoftModSAC and every policy of the package."""

from __future__ import annotations

import io
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from point_mass import PointMass, make_point_mass_env
from small_networks import TINY
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import ConfigurationError, FileError, MultiTaskReplayBuffer, SoftModSAC, TaskEnv, make_multitask_env
from sb3_softmod.policies import POLICIES

M = 3
every_policy = pytest.mark.parametrize("policy", POLICIES)


def make_model(policy: str = "MTMlpPolicy", envs_per_task: int = 1, **kwargs: Any) -> SoftModSAC:
    options: dict[str, Any] = dict(
        batch_size=2 * M, learning_starts=2 * M, buffer_size=600, policy_kwargs=TINY.get(policy), seed=0, device="cpu"
    )
    return SoftModSAC(policy, make_point_mass_env(M, envs_per_task), **{**options, **kwargs})


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists, by their path."""
    if isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {path: leaf for key, value in items for path, leaf in flat(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def is_same(first: Any, second: Any) -> bool:
    """Bit for bit."""
    return th.equal(first, second) if isinstance(first, th.Tensor) else first == second


def differing(first: SoftModSAC, second: SoftModSAC) -> list[str]:
    """The parameters, the state of the optimizers and the temperatures that are not the same, bit for bit."""
    ours, theirs = (flat({**m.get_parameters(), "log_ent_coef": m.log_ent_coef}) for m in (first, second))
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not is_same(value, theirs[name])]


def observations(copies: int = 1) -> np.ndarray:
    env = make_point_mass_env(M, copies)
    env.seed(5)
    return np.asarray(env.reset())


def actions(model: SoftModSAC) -> np.ndarray:
    return model.predict(observations(), deterministic=True)[0]


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
    model = make_model().learn(10 * M)
    model.save(tmp_path / "without", exclude=["learning_rate", "gamma"])
    model.save(tmp_path / "with", include=["replay_buffer"])
    custom = SoftModSAC.load(tmp_path / "without")
    assert custom.gamma == 0.99  # the default
    loaded = SoftModSAC.load(tmp_path / "with")
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


# ------------------------------------------------------------------------------------------------------- acting


@every_policy
def test_predict(policy: str) -> None:
    model = make_model(policy).learn(10 * M)
    batch = observations(copies=2)
    one, state = model.predict(batch[0], deterministic=True)
    assert (one.shape, state) == ((2,), None)
    many, _ = model.predict(batch, deterministic=True)
    assert (many.shape, many.dtype) == ((2 * M, 2), np.float32)
    np.testing.assert_allclose(many[0], one, atol=1e-6)
    np.testing.assert_array_equal(model.predict(batch, deterministic=True)[0], many)
    np.testing.assert_array_equal(model.predict(batch.astype(np.float64), deterministic=True)[0], many)
    np.testing.assert_array_equal(model.predict(batch.tolist(), deterministic=True)[0], many)
    th.manual_seed(0)
    drawn = np.stack([model.predict(batch)[0] for _ in range(20)])
    assert (drawn.std(0) > 0).all()
    assert (abs(drawn) <= 1).all()
    assert [model.action_space.contains(action) for action in drawn[:, 0]] == [True] * 20


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4, np.float32), r"needs an observation \(5,\) or a batch of them \(n, 5\), not one of shape \(4,\)"),
        (np.zeros((2, 6), np.float32), r"not one of shape \(2, 6\)"),
        (np.zeros((1, 2, 5), np.float32), r"not one of shape \(1, 2, 5\)"),
        (np.array(["a"] * 5), "must be an array of numbers, not of <U1"),
        ((np.zeros(5, np.float32), {}), "must be an array of numbers"),
    ],
)
def test_predict_refuses(observation: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model().predict(observation)


class Modes(BaseCallback):
    """Notes whether the policy is in training mode while it collects, and while it learns."""

    def _on_training_start(self) -> None:
        self.collecting: set[bool] = set()
        self.learning: set[bool] = set()
        buffer = self.model.replay_buffer  # type: ignore[attr-defined]
        sample = buffer.sample

        def noting(*args: Any, **kwargs: Any) -> Any:
            self.learning |= {module.training for module in self._parts()}
            return sample(*args, **kwargs)

        buffer.sample = noting

    def _on_step(self) -> bool:
        self.collecting |= {module.training for module in self._parts()}
        return True

    def _parts(self) -> list[th.nn.Module]:
        return [self.model.actor, self.model.critic]  # type: ignore[attr-defined]


@every_policy
def test_training_mode(policy: str) -> None:
    model, modes = make_model(policy), Modes()
    model.learn(20 * M, modes)
    assert (modes.collecting, modes.learning) == ({False}, {True})
    model.policy.set_training_mode(True)
    model.predict(observations())
    assert not model.actor.training
    assert not model.critic_target.training


def test_training_mode_with_overlap() -> None:
    model, modes = make_model("HardRoutingPolicy", overlap=True), Modes()
    model.learn(20 * M, modes)
    assert (modes.collecting, modes.learning) == ({False}, {True})


# ----------------------------------------------------------------------------------------------------- learning


@every_policy
@pytest.mark.parametrize("overlap", [False, True])
def test_two_parts_count_as_one(policy: str, overlap: bool) -> None:
    model = make_model(policy, overlap=overlap)
    seen: list[tuple[int, float]] = []

    def note(local: dict[str, Any], _: Any) -> bool:
        seen.append((model.num_timesteps, model._current_progress_remaining))
        return True

    model.learn(20 * M)
    updates = model._n_updates
    model.learn(10 * M, note, reset_num_timesteps=False)
    assert (model.num_timesteps, model._total_timesteps) == (30 * M, 30 * M)
    assert model._n_updates == updates + 10
    assert [steps for steps, _ in seen] == list(range(21 * M, 31 * M, M))
    assert seen[-1][1] == pytest.approx(1 - 29 / 30)
    assert model._episode_num == M  # of 20 steps; the second part is in the middle of the next ones
    model.learn(10 * M)
    assert (model.num_timesteps, model._total_timesteps) == (10 * M, 10 * M)
    assert model.replay_buffer.size() == 40 * M  # type: ignore[union-attr]  # what was stored stays


def test_the_seed_of_a_model() -> None:
    first, second, other = (make_model(seed=seed).learn(15 * M) for seed in (4, 4, 5))
    assert differing(first, second) == []
    assert any("policy" in name for name in differing(first, other))
    drawn = []
    for _ in range(2):
        first.set_random_seed(11)
        drawn.append((first.predict(observations())[0], first.action_space.sample(), np.asarray(first.env.reset())))  # type: ignore[union-attr]
    for a, b in zip(*drawn, strict=True):
        np.testing.assert_array_equal(a, b)
    first.set_random_seed(None)  # leaves everything as it is
    for seed in (-1, "ten", 2**32):
        with pytest.raises(ConfigurationError, match="seed must be"):
            make_model(seed=seed)


class Counting(BaseCallback):
    """Counts what it is told of."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.begun = self.ended = self.rollouts = 0

    def _on_training_start(self) -> None:
        self.begun += 1

    def _on_training_end(self) -> None:
        self.ended += 1

    def _on_rollout_start(self) -> None:
        self.rollouts += 1

    def _on_step(self) -> bool:
        return self.stop_at is None or self.n_calls < self.stop_at


@pytest.mark.parametrize("overlap", [False, True])
def test_callbacks(overlap: bool) -> None:
    model = make_model(overlap=overlap)
    one, stopping, calls = Counting(), Counting(stop_at=7), []
    model.learn(20 * M, [one, stopping])
    assert (one.n_calls, one.rollouts, model.num_timesteps) == (7, 7, 7 * M)
    assert (one.begun, one.ended, stopping.ended) == (1, 1, 1)
    model.learn(5 * M, CallbackList([one, Counting()]))
    assert (one.n_calls, one.begun) == (12, 2)

    def function(local: dict[str, Any], _: Any) -> bool:
        calls.append(local["self"].num_timesteps)
        return len(calls) < 3

    model.learn(5 * M, function)
    assert calls == [M, 2 * M, 3 * M]
    model.learn(5 * M, None)
    assert model.num_timesteps == 5 * M


def test_learn_refuses() -> None:
    model = make_model()
    for kwargs, message in (
        (dict(total_timesteps="ten"), "total_timesteps must be a finite number, not 'ten'"),
        (dict(total_timesteps=-1), "total_timesteps must be at least 0, not -1"),
        (dict(total_timesteps=10, log_interval=0), "log_interval must be at least 1, not 0"),
        (dict(total_timesteps=10, callback=3), "callback must be a BaseCallback, a function or a list of them, not 3"),
        (dict(total_timesteps=10, callback=[Counting(), "x"]), "callback must be .*, not 'x'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            model.learn(**kwargs)
    assert model.learn(1e1).num_timesteps == 12  # type: ignore[arg-type]  # SB3 takes 1e6 too


def test_arguments_of_sac_that_there_are_not() -> None:
    for arguments in (dict[str, Any](n_steps=3), dict[str, Any](optimize_memory_usage=True)):
        with pytest.raises(TypeError, match=next(iter(arguments))):
            make_model(**arguments)


@pytest.mark.parametrize("overlap", [False, True])
def test_learning_rate_schedules(overlap: bool, tmp_path: Path) -> None:
    model = make_model(learning_rate=lambda remaining: 0.01 * remaining, overlap=overlap)
    model.learn(10 * M)
    assert model.ent_coef_optimizer is not None
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert [group["lr"] for group in optimizer.param_groups] == [0.0]  # the last step's
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M))
    assert loaded.lr_schedule(0.5) == pytest.approx(0.005)
    loaded.learn(10 * M, lambda local, _: local["self"].num_timesteps < 15 * M, reset_num_timesteps=False)
    assert 0 < loaded.actor.optimizer.param_groups[0]["lr"] < 0.005


@every_policy
def test_gsde(policy: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{policy} has no gSDE: leave use_sde False"):
        make_model(policy, use_sde=True)


def test_gsde_of_sb3s_policy(tmp_path: Path) -> None:
    kwargs = dict(net_arch=[6])
    model = make_model("MlpPolicy", use_sde=True, sde_sample_freq=2, policy_kwargs=kwargs).learn(10 * M)
    assert model._n_updates > 0
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M))
    np.testing.assert_array_equal(actions(loaded), actions(model))
    loaded.learn(5 * M, reset_num_timesteps=False)


@every_policy
def test_another_number_of_envs(policy: str, tmp_path: Path) -> None:
    model = make_model(policy).learn(10 * M)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M, envs_per_task=2))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.n_envs == 2 * M
    loaded.learn(20 * M, reset_num_timesteps=False)
    assert loaded.num_timesteps == 30 * M
    assert loaded.replay_buffer.size_per_task().tolist() == [30] * M  # type: ignore[union-attr]


def test_set_env_refuses() -> None:
    model = make_model()
    for env, message in (
        (make_point_mass_env(M, envs_per_task=2), r"The model has 3 envs, but these are 6: .* load\(path, env="),
        (make_point_mass_env(2), "The model has 3 tasks, but the env 2"),
        (
            make_multitask_env(dict.fromkeys("abc", "Pendulum-v1"), n_workers=0),
            r"The observation space of the model is Box\(.*, that of the env Box\(",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            model.set_env(env)
    model.learn(10 * M)
    assert model.num_timesteps == 10 * M


def test_no_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model().learn(10 * M)
        model.save(tmp_path / "model")
        SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M)).learn(5 * M)
