"""MultiTaskSAC: SB3's SAC with one task; temperatures, weights, logs and files with many."""

from __future__ import annotations

import csv
import math
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from point_mass import PointMass, make_point_mass_env
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize, SoftModSAC, TaskEnv
from sb3_softmod.learner.loss_weights import loss_weights
from sb3_softmod.policies import SoftModularExtractor

M = 4
SMALL: dict[str, Any] = dict(embedding_dim=12, module_dim=8)


def make_model(tasks: int = M, envs_per_task: int = 1, **kwargs: Any) -> SoftModSAC:
    options: dict[str, Any] = dict(
        batch_size=8 * tasks, learning_starts=10 * tasks, buffer_size=4000, policy_kwargs=SMALL, seed=0
    )
    return SoftModSAC("SoftModPolicy", make_point_mass_env(tasks, envs_per_task), **{**options, **kwargs})


def parameters(model: SAC) -> dict[str, th.Tensor]:
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def batch_of(model: MultiTaskSAC, tasks: list[int], reward: float = 0.0) -> ReplayBufferSamples:
    """Transitions of the given tasks."""
    generator = th.Generator().manual_seed(0)
    one_hot = th.eye(M)[tasks]
    size = len(tasks)
    obs = th.cat([th.randn(size, 2, generator=generator), one_hot], 1)
    actions = th.rand(size, 2, generator=generator) * 2 - 1
    return ReplayBufferSamples(obs, actions, obs.clone(), th.zeros(size, 1), th.full((size, 1), reward))


class Replayed(ReplayBuffer):
    """Gives the same batch each time."""

    def __init__(self, batch: ReplayBufferSamples) -> None:
        self.batch = batch

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        return self.batch


# ------------------------------------------------------------------ parity with SB3


def test_a_shared_features_extractor_learns_from_the_actor() -> None:
    """As in SB3, whose critics hold it too and compute its features without gradients."""
    extractor = dict(num_tasks=M, **SMALL)
    options = dict(features_extractor_class=SoftModularExtractor, features_extractor_kwargs=extractor)
    model = MultiTaskSAC(
        "MlpPolicy", make_point_mass_env(M), learning_starts=20, batch_size=8 * M, device="cpu", seed=0,
        policy_kwargs=dict(**options, net_arch=[4], share_features_extractor=True),
    )  # fmt: skip
    before = [p.clone() for p in model.actor.features_extractor.parameters()]
    model.learn(60)
    assert all(not th.equal(p, old) for p, old in zip(model.actor.features_extractor.parameters(), before, strict=True))


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.2", 0.1])
def test_one_task_is_sb3_sac(ent_coef: str | float) -> None:
    common: dict[str, Any] = dict(
        ent_coef=ent_coef, learning_starts=50, batch_size=64, policy_kwargs=dict(net_arch=[32, 32]), seed=3
    )
    ours = MultiTaskSAC("MlpPolicy", make_point_mass_env(1), replay_buffer_class=ReplayBuffer, **common)
    ours.learn(250)  # before the other is made: both draw from torch's and numpy's global generators
    theirs = SAC("MlpPolicy", make_point_mass_env(1), **common)
    theirs.learn(250)
    assert ours._n_updates == theirs._n_updates == 200
    expected = parameters(theirs)
    for name, value in parameters(ours).items():
        # SB3 rounds a target twice a step, at (1 - tau) times it and at the sum; a lerp rounds the change alone.
        assert (value - expected[name]).abs().max() <= (2e-6 if "target" in name else 1e-6), name
    if isinstance(ent_coef, str):
        assert ours.log_ent_coef is not None
        assert theirs.log_ent_coef is not None
        assert (ours.log_ent_coef - theirs.log_ent_coef).abs().max() <= 1e-6
        assert (theirs.log_ent_coef - math.log(0.2 if "_" in str(ent_coef) else 1.0)).abs() > 0.05


# --------------------------------------------------------- temperatures and weights


def test_a_temperature_moves_by_its_own_tasks_samples_alone() -> None:
    model = make_model(ent_coef="auto_0.5")
    model._setup_learn(0)
    assert model.log_ent_coef is not None
    model.replay_buffer = Replayed(batch_of(model, [1] * 8 + [3] * 8))
    model.train(gradient_steps=1, batch_size=16)
    moved = (model.log_ent_coef.detach() - math.log(0.5)).abs()
    assert moved[[0, 2]].max() < 1e-7
    assert moved[[1, 3]].min() > 1e-5


def test_temperature_gradient_is_eq_2_of_each_task() -> None:
    model = make_model()
    model._setup_learn(0)
    assert model.log_ent_coef is not None
    batch = batch_of(model, [0, 0, 1, 2, 2, 2, 3, 3])
    th.manual_seed(5)
    _, log_prob = model.actor.action_log_prob(batch.observations)
    model.replay_buffer = Replayed(batch)
    th.manual_seed(5)
    model.train(gradient_steps=1, batch_size=8)
    expected = th.stack([-(log_prob[batch.observations[:, 2 + t] == 1].mean() - 2.0) for t in range(M)])
    assert model.log_ent_coef.grad is not None
    assert (model.log_ent_coef.grad - expected).abs().max() < 1e-5


def test_weights_are_eq_10() -> None:
    alpha = th.tensor([0.1, 0.5, 2.0, 0.01], dtype=th.float64)
    expected = [4 * math.exp(-a) / sum(math.exp(-b) for b in alpha.tolist()) for a in alpha.tolist()]
    weights = loss_weights("alpha", alpha)
    assert (weights - th.tensor(expected, dtype=th.float64)).abs().max() < 1e-12
    of_code = [4 * (1 / a) / sum(1 / b for b in alpha.tolist()) for a in alpha.tolist()]  # exp(-log a) = 1 / a
    assert (loss_weights("log_alpha", alpha) - th.tensor(of_code, dtype=th.float64)).abs().max() < 1e-12
    assert loss_weights("uniform", alpha).tolist() == [1.0] * 4
    success = th.tensor([0.0, 0.1, 0.8, 1.0], dtype=th.float64)
    by_success = loss_weights("success", alpha, success=success)
    assert (by_success - th.tensor([1.1, 1.0, 0.3, 0.1], dtype=th.float64) / 0.625).abs().max() < 1e-12
    for weighting in ("alpha", "log_alpha", "uniform"):
        assert loss_weights(weighting, alpha).mean() == pytest.approx(1.0)
        assert not loss_weights(weighting, alpha.requires_grad_()).requires_grad


def test_a_tasks_share_of_the_loss_follows_its_weight() -> None:
    """The critic's gradient is the weighted mean of the tasks' own gradients."""
    temperatures = [0.1, 1.0, 3.0, 0.5]

    def critic_gradient(weighting: str, tasks: list[int]) -> list[th.Tensor]:
        model = make_model(loss_weighting=weighting, ent_coef=temperatures)
        model._setup_learn(0)
        model.replay_buffer = Replayed(batch_of(model, tasks, reward=1.0))
        th.manual_seed(2)
        model.train(gradient_steps=1, batch_size=len(tasks))
        return [p.grad.clone() for p in model.critic.parameters() if p.grad is not None]

    weights = loss_weights("alpha", th.tensor(temperatures))
    pair = [0] * 6 + [2] * 6
    uniform = critic_gradient("uniform", pair)
    weighted = critic_gradient("alpha", pair)
    assert any((w - u).abs().max() > 1e-4 for w, u in zip(weighted, uniform, strict=True))
    # g_weighted = (w_0 g_0 + w_2 g_2) / 2 and g_uniform = (g_0 + g_2) / 2 span a plane; solve for g_0 and g_2,
    # whose task encoders must then each touch the column of one task alone.
    w0, w2 = weights[0], weights[2]
    named = dict(make_model().critic.named_parameters())
    index = list(named).index("network.task_encoder.weight")
    g0 = 2 * (weighted[index] - w2 * uniform[index]) / (w0 - w2)
    g2 = 2 * (weighted[index] - w0 * uniform[index]) / (w2 - w0)
    assert g0[..., 2].abs().max() < 1e-4 * g0[..., 0].abs().max()
    assert g2[..., 0].abs().max() < 1e-4 * g2[..., 2].abs().max()


def test_default_weighting() -> None:
    assert make_model().loss_weighting == "alpha"
    assert MultiTaskSAC("SoftModPolicy", make_point_mass_env(2), policy_kwargs=SMALL).loss_weighting == "uniform"


@pytest.mark.parametrize("policy", ["SoftModPolicy", "MlpPolicy"])
def test_max_grad_norm_bounds_every_network(policy: str) -> None:
    model = MultiTaskSAC(
        policy,
        make_point_mass_env(M),
        max_grad_norm=1e-3,
        batch_size=32,
        policy_kwargs=SMALL if policy == "SoftModPolicy" else None,
        seed=0,
    )
    model._setup_learn(0)
    model.replay_buffer = Replayed(batch_of(model, [0, 1, 2, 3] * 8, reward=10.0))
    model.train(gradient_steps=1, batch_size=32)

    def norm(grads: list[th.Tensor]) -> float:
        return math.sqrt(sum(float(g.square().sum()) for g in grads))

    assert norm([p.grad for p in model.actor.parameters() if p.grad is not None]) == pytest.approx(1e-3, rel=1e-2)
    if policy == "SoftModPolicy":
        critics = [[p.grad[e] for p in model.critic.parameters() if p.grad is not None] for e in range(2)]
    else:
        critics = [[p.grad for p in q.parameters() if p.grad is not None] for q in model.critic.q_networks]
    for grads in critics:
        assert norm(grads) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("ent_coef", "expected"),
    [("auto", [1.0] * M), ("auto_0.1", [0.1] * M), (0.3, [0.3] * M), ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])],
)
def test_first_temperatures(ent_coef: Any, expected: list[float]) -> None:
    model = make_model(ent_coef=ent_coef)
    learned = isinstance(ent_coef, str)
    alpha = model.log_ent_coef.exp() if learned else model.ent_coef_tensor  # type: ignore[union-attr]
    assert alpha.tolist() == pytest.approx(expected)
    model.learn(120)
    alpha = model.log_ent_coef.exp() if learned else model.ent_coef_tensor  # type: ignore[union-attr]
    assert (alpha.tolist() == pytest.approx(expected)) is not learned


# --------------------------------------------------------------------- defaults, logs


def test_defaults_scale_with_the_tasks() -> None:
    model = SoftModSAC("SoftModPolicy", make_point_mass_env(3), policy_kwargs=SMALL)
    assert (model.batch_size, model.learning_starts) == (3 * 128, 3 * 100)
    assert model.task_names == ["corner-0", "corner-1", "corner-2"]


def test_policy_kwargs_of_the_user_are_not_changed() -> None:
    mine = dict(SMALL)
    make_model(policy_kwargs=mine)
    assert mine == SMALL


def test_logs_of_every_task(tmp_path: Path) -> None:
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    model.learn(4 * 20 * 3)
    with open(tmp_path / "progress.csv") as file:
        last = list(csv.DictReader(file))[-1]
    losses = ["ent_coef", "loss_weight", "log_prob", "q_value", "critic_loss", "actor_loss"]
    means = {
        **{metric: f"train/{metric}" for metric in losses},
        "task_success_rate": "rollout/success_rate",
        "task_success_at_end_rate": "rollout/task_success_at_end_rate",
        "task_return": "rollout/ep_rew_mean",
        "task_length": "rollout/ep_len_mean",
    }
    for metric, mean in means.items():
        values = [float(last[f"{metric}/corner-{i}"]) for i in range(M)]
        assert np.mean(values) == pytest.approx(float(last[mean]), rel=1e-4)
    assert {name for name in last if name.startswith("rollout/")} == {
        name for name in means.values() if name.startswith("rollout/")
    }
    assert np.mean([float(last[f"loss_weight/corner-{i}"]) for i in range(M)]) == pytest.approx(1, rel=1e-5)
    assert float(last["task_length/corner-2"]) == 20


def test_what_is_logged_of_gradient_steps(tmp_path: Path) -> None:
    """The mean over the steps since the last log; Q-values are means over the critics."""
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(80, log_interval=None)
    model._metrics.pop()
    expected = []
    for seed in range(3):
        batch = batch_of(model, list(range(M)) * 8, reward=float(seed))
        model.replay_buffer = Replayed(batch)
        with th.no_grad():
            q = th.stack(model.critic(batch.observations, batch.actions)).mean(0)
        expected.append(q.view(8, M).mean(0))
        model.train(1, 8 * M)
    found = model._metrics.pop()
    np.testing.assert_allclose(found["q_value"], th.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
    assert not model._metrics.pop()  # it begins anew


def test_the_terminal_shows_means_even_with_long_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"button-press-topdown-wall-with-a-long-name-{i}" for i in range(2)]
    envs = [partial(TaskEnv, gym.wrappers.TimeLimit(PointMass(i), 20), i, names) for i in range(2)]
    model = SoftModSAC("SoftModPolicy", DummyVecEnv(envs), policy_kwargs=SMALL, batch_size=8, verbose=1, seed=0)  # type: ignore[arg-type]
    model.learn(300)
    out = capsys.readouterr().out
    assert " success_rate " in out
    assert "task_success_rate" not in out
    assert "ent_coef" in out
    assert "button-press" not in out


def test_tensorboard_has_a_chart_for_each_metric_with_all_tasks(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    model = make_model(tensorboard_log=str(tmp_path))
    model.learn(4 * 20 * 3)
    events = EventAccumulator(str(next(tmp_path.iterdir()))).Reload()
    (tensor,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["success", "return", "learning"]
    tags = events.Tags()["scalars"]
    drawn = {
        (category.title, chart.title): [tag for tag in tags if any(re.match(each, tag) for each in chart.multiline.tag)]
        for category in layout.category
        for chart in category.chart
    }
    assert drawn["success", "training"] == [f"task_success_rate/corner-{i}" for i in range(M)]
    assert drawn["learning", "ent_coef"] == [f"ent_coef/corner-{i}" for i in range(M)]
    assert drawn["learning", "critic_loss"] == [f"critic_loss/corner-{i}" for i in range(M)]


# ------------------------------------------------------------------------------ files


def states(model: SoftModSAC) -> list[th.Tensor]:
    optimizers = (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer)
    found = []
    for optimizer in optimizers:
        assert optimizer is not None
        for state in optimizer.state_dict()["state"].values():
            found += [th.as_tensor(value) for value in state.values()]
    assert model.log_ent_coef is not None
    return [*found, model.log_ent_coef.detach(), *(p.detach() for p in model.policy.parameters())]


def test_save_and_load_with_other_envs(tmp_path: Path) -> None:
    """With its own envs, and without: tests/algorithm/test_sb3_saving.py, of every policy."""
    model = make_model()
    model.learn(200)
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M, envs_per_task=3))

    obs = np.asarray(make_point_mass_env(M).reset())
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    for value, expected in zip(states(loaded), states(model), strict=True):
        assert th.equal(value, expected)
    assert (loaded.num_tasks, loaded.task_names, loaded.batch_size) == (M, model.task_names, model.batch_size)
    assert loaded.loss_weighting == "alpha"
    before = parameters(loaded)
    loaded.learn(400, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 600
    assert any(not th.equal(p, before[name]) for name, p in parameters(loaded).items())


def test_fixed_temperatures_are_saved(tmp_path: Path) -> None:
    model = make_model(ent_coef=[0.1, 0.2, 0.3, 0.4])
    model.save(tmp_path / "model")
    assert th.equal(SoftModSAC.load(tmp_path / "model").ent_coef_tensor, th.tensor([0.1, 0.2, 0.3, 0.4]))


def test_other_number_of_tasks_is_refused(tmp_path: Path) -> None:
    make_model(tasks=4).save(tmp_path / "four")
    with pytest.raises(ConfigurationError, match=r"saved for 4 tasks, but the env has 3"):
        SoftModSAC.load(tmp_path / "four", env=make_point_mass_env(3))


def test_other_tasks_of_the_same_number_warn(tmp_path: Path) -> None:
    make_model(tasks=2).save(tmp_path / "model")
    names = ["left", "right"]
    env = DummyVecEnv([partial(TaskEnv, PointMass(i), i, names) for i in range(2)])
    names = ["corner-1", "corner-0"]
    swapped = DummyVecEnv([partial(TaskEnv, gym.wrappers.TimeLimit(PointMass(i), 20), i, names) for i in range(2)])
    with pytest.raises(ConfigurationError, match="in another order than the env has them: pass corner-0, corner-1, in"):
        SoftModSAC.load(tmp_path / "model", env=swapped)
    with pytest.warns(UserWarning, match=r"The model knows the tasks \['corner-0', 'corner-1'\]"):
        SoftModSAC.load(tmp_path / "model", env=env)


def test_set_env(tmp_path: Path) -> None:
    make_model().learn(200).save(tmp_path / "model")
    model = SoftModSAC.load(tmp_path / "model")
    with pytest.raises(ConfigurationError, match="The model has 4 tasks, but the env 3"):
        model.set_env(make_point_mass_env(3))
    model.set_env(make_point_mass_env(M))
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps == 300
    kept, reverse = model.env, [f"corner-{i}" for i in reversed(range(M))]
    with pytest.raises(ConfigurationError, match="in another order than the env has them: pass corner-0, corner-1"):
        model.set_env(DummyVecEnv([partial(TaskEnv, PointMass(i), i, reverse) for i in range(M)]))
    assert model.env is kept


def test_an_env_before_the_training_keeps_its_settings() -> None:
    model = SoftModSAC("SoftModPolicy", MultiTaskVecNormalize(make_point_mass_env(M)), policy_kwargs=SMALL)
    new = MultiTaskVecNormalize(make_point_mass_env(M), norm_reward=False, obs_statistics="per-task")
    model.set_env(new)
    assert (new.norm_reward, new.obs_statistics) == (False, "per-task")
    raw = MultiTaskVecNormalize(make_point_mass_env(M), norm_obs=False)
    model = SoftModSAC("SoftModPolicy", raw, policy_kwargs=SMALL)
    model.set_env(new)
    assert new.norm_obs
    model.set_env(make_point_mass_env(M))
    assert model.get_vec_normalize_env() is None


class Interrupt(BaseCallback):
    """Ctrl-C after some steps."""

    def _on_step(self) -> bool:
        if self.n_calls == 20:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("overlap", [False, True])
def test_an_interrupted_run_can_be_saved_and_goes_on(overlap: bool, tmp_path: Path) -> None:
    model = make_model(overlap=overlap)
    with pytest.raises(KeyboardInterrupt):
        model.learn(400, callback=Interrupt())
    assert model.num_timesteps == 80
    model.save(tmp_path / "model")
    for going_on in (model, SoftModSAC.load(tmp_path / "model", env=make_point_mass_env(M))):
        going_on.learn(100, reset_num_timesteps=False)
        assert going_on.num_timesteps == 180


class End(BaseCallback):
    """Ends the training after some steps."""

    def _on_step(self) -> bool:
        return self.n_calls < 30


@pytest.mark.parametrize("callback", [Interrupt, End])
def test_what_goes_on_begins_new_episodes(callback: type[BaseCallback]) -> None:
    """The step that the envs took last was not stored: no transition leads over it."""
    model = make_model()
    with suppress(KeyboardInterrupt):
        model.learn(400, callback=callback())
    model.learn(400, reset_num_timesteps=False)
    assert model.replay_buffer is not None
    batch = model.replay_buffer.sample(500 * M)
    moved = th.clamp(batch.observations[:, :2] + 0.2 * batch.actions, -1, 1)
    assert th.allclose(batch.next_observations[:, :2], moved, atol=1e-6)


def test_overlap_takes_the_same_number_of_steps_and_is_deterministic(tmp_path: Path) -> None:
    first, again = (make_model(overlap=True).learn(200) for _ in range(2))
    plain = make_model().learn(200)
    assert first._n_updates == plain._n_updates == 40
    assert all(th.equal(a, b) for a, b in zip(states(first), states(again), strict=True))
    # The policy acts one update later, so the runs differ.
    assert not all(th.equal(a, b) for a, b in zip(states(first), states(plain), strict=True))
    first.save(tmp_path / "model")
    assert SoftModSAC.load(tmp_path / "model").overlap
