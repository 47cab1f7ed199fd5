"""What SB3 promises of its algorithms, for SoftModSAC and every policy of the package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from sb3_contract import M, actions, differing, every_policy, make_model, observations
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_softmod import ConfigurationError, SoftModSAC, make_multitask_env

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
    state = th.get_rng_state()
    first.set_random_seed(None)  # leaves everything as it is
    assert th.equal(th.get_rng_state(), state)
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
    with pytest.raises(TypeError, match="optimize_memory_usage"):
        make_model(optimize_memory_usage=True)


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
