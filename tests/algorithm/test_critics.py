"""Models whose critics predict distributions, and whose actor learns every so many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from small_networks import TINY
from stable_baselines3 import SAC

from sb3_softmod import ConfigurationError, MultiTaskSAC, SoftModSAC
from sb3_softmod.policies import POLICIES, MultiTaskCritic

M = 4
CATEGORICAL: dict[str, Any] = dict(critic="categorical", num_atoms=31, v_min=-20.0, v_max=5.0)


def make_model(policy: str = "SoftModPolicy", env: Any = None, **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(
        learning_starts=4 * M, batch_size=8 * M, buffer_size=4000, policy_kwargs=dict(TINY[policy]), seed=0
    )
    return MultiTaskSAC(policy, make_point_mass_env(M) if env is None else env, **{**options, **kwargs})


def parameters(module: Any) -> list[th.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first: list[th.Tensor], second: list[th.Tensor]) -> bool:
    return all(th.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns_saves_and_loads(policy: str, tmp_path: Path) -> None:
    model = make_model(policy, **CATEGORICAL)
    before = parameters(model.critic)
    model.learn(10 * M)
    assert isinstance(model.critic, MultiTaskCritic)
    assert not same(parameters(model.critic), before)
    obs, actions = th.randn(3, 2 + M), th.rand(3, 2)
    obs[:, 2:] = th.eye(M)[:3]
    model.policy.set_training_mode(False)
    logits = model.critic.predictions(obs, actions)
    assert logits.shape == (2, 3, 31)
    expected = logits.softmax(-1) @ th.linspace(-20, 5, 31)
    th.testing.assert_close(th.cat(model.critic(obs, actions), 1).T, expected)
    th.testing.assert_close(model.critic.q1_forward(obs, actions)[:, 0], expected[0])
    model.save(tmp_path / "model")
    for options in (dict[str, Any](), dict[str, Any](safe=True, policy=policy)):
        again = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), **options)
        assert (again.critic_kind, again.num_atoms, again.v_min, again.v_max) == ("categorical", 31, -20, 5)
        again.policy.set_training_mode(False)
        th.testing.assert_close(again.critic.q1_forward(obs, actions)[:, 0], expected[0])
        again.learn(2 * M)


@pytest.mark.parametrize("options", [dict(gradient_surgery="pcgrad"), dict(precision="bf16")])
def test_with_other_options(options: dict[str, Any]) -> None:
    model = make_model("MTMlpPolicy", **CATEGORICAL, **options)
    before = parameters(model.actor)
    model.learn(10 * M)
    assert not same(parameters(model.actor), before)
    metrics = model._metrics.pop()
    assert metrics["q_value"].shape == (M,)
    assert np.isfinite(metrics["critic_loss"]).all()


def test_actor_and_temperatures_wait() -> None:
    model = make_model(policy_delay=3)
    model.learn(10 * M)  # 6 steps
    assert model._n_updates == 6
    assert model.log_ent_coef is not None
    for step in range(7, 13):
        actor, critic, log_alpha = (
            parameters(model.actor),
            parameters(model.critic),
            model.log_ent_coef.detach().clone(),
        )
        model.train(1, 8 * M)
        assert same(parameters(model.actor), actor) == (step % 3 != 0)
        assert th.equal(model.log_ent_coef.detach(), log_alpha) == (step % 3 != 0)
        assert not same(parameters(model.critic), critic)
    metrics = model._metrics.pop()  # means over the steps that have them
    assert all(np.isfinite(values).all() for values in metrics.values())
    model.train(1, 8 * M)
    assert "actor_loss" not in model._metrics.pop()


@pytest.mark.parametrize("kind", ["mse", "categorical"])
def test_which_value_of_the_critics(kind: str) -> None:
    """Of targets and of the actor's loss; one that is changed counts from the next gradient step on."""

    def losses(first: str, then: str | None = None) -> dict[str, np.ndarray]:
        model = make_model(**{**CATEGORICAL, "critic": kind}, critic_target=first, learning_rate=0.0)
        model.learn(5 * M)  # the networks stay as they were drawn, whatever the first steps had
        model._metrics.pop()
        model.critic_target_kind = then or first  # type: ignore[assignment]
        th.manual_seed(0)
        model.train(1, 8 * M)
        return model._metrics.pop()

    least, mean, changed = losses("min"), losses("mean"), losses("min", "mean")
    assert (least["actor_loss"] > mean["actor_loss"]).all()
    assert (least["critic_loss"] != mean["critic_loss"]).all()
    for name, values in mean.items():
        np.testing.assert_array_equal(changed[name], values, err_msg=name)


def test_resumed_with_all(tmp_path: Path) -> None:
    """From a file: the same steps as without the break."""
    env = make_point_mass_env(M)
    options = dict(policy_delay=2, critic_target="mean", target_entropy="auto_0.5", ent_coef="auto_0.1", **CATEGORICAL)
    model = make_model(env=env, **options)
    model.learn(9 * M)
    assert model._n_updates == 5
    model.save(tmp_path / "model")
    again = SoftModSAC.load(tmp_path / "model", env)
    assert (again.policy_delay, again.critic_target_kind, again.target_entropy) == (2, "mean", -1.0)
    assert model.replay_buffer is not None
    again.replay_buffer = model.replay_buffer
    again._turns, again._logger = model._turns, model.logger
    for each in (model, again):
        th.manual_seed(0)
        each.train(3, 8 * M)
    assert same(parameters(again.policy), parameters(model.policy))
    assert th.equal(again.log_ent_coef, model.log_ent_coef)  # type: ignore[arg-type]


def test_a_critic_larger_than_the_actor(tmp_path: Path) -> None:
    kwargs = dict(embedding_dim=8, module_dim=8, critic_options=dict(module_dim=12, num_modules=3))
    model = make_model(policy_kwargs=kwargs)
    sizes = {name: getattr(model, name).network.options for name in ("actor", "critic", "critic_target")}
    assert [(s.module_dim, s.num_modules, s.embedding_dim) for s in sizes.values()] == [
        (8, 2, 8),
        (12, 3, 8),
        (12, 3, 8),
    ]
    model.save(tmp_path / "model")
    assert MultiTaskSAC.load(tmp_path / "model").critic.network.options.module_dim == 12  # type: ignore[union-attr]
    model.policy.save(str(tmp_path / "policy"))
    assert type(model.policy).load(str(tmp_path / "policy")).critic.network.options.module_dim == 12  # type: ignore[union-attr]


def test_in_sb3s_own_sac() -> None:
    kwargs = dict(num_tasks=M, embedding_dim=8, module_dim=8, value_atoms=(31, -20.0, 5.0))
    model = SAC(POLICIES["SoftModPolicy"], make_point_mass_env(M), policy_kwargs=kwargs, learning_starts=4, seed=0)
    before = [p.detach().clone() for p in model.critic.parameters()]
    model.learn(10 * M)
    assert model.critic.predictions(th.zeros(1, 2 + M), th.zeros(1, 2)).shape == (2, 1, 31)  # type: ignore[operator]
    for parameter, first in zip(model.critic.parameters(), before, strict=True):
        assert parameter.isfinite().all()
        assert not th.equal(parameter, first)


def test_target_entropy() -> None:
    assert make_model(target_entropy="auto").target_entropy == -2
    assert make_model(target_entropy="auto_0.5").target_entropy == -1
    assert make_model(target_entropy="auto_-1").target_entropy == 2
    assert make_model(target_entropy=-3).target_entropy == -3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(critic="c51"), "Unknown critic 'c51'"),
        (dict(critic_target="max"), "Unknown critic_target 'max'"),
        (dict(num_atoms=1), "num_atoms must be from 2 to 10000, not 1"),
        (dict(v_min=1.0, v_max=1.0), r"v_min must be below v_max, not 1\.0 and 1\.0"),
        (dict(v_max=float("inf")), "v_max must be a finite number"),
        (dict(policy_delay=0), "policy_delay must be at least 1, not 0"),
        (dict(target_entropy="half"), "target_entropy must be \"auto\" .* not 'half'"),
        (dict(target_entropy="auto_x"), "not 'auto_x'"),
        (dict(target_entropy="auto_0_5"), "not 'auto_0_5'"),
        (dict(ent_coef="auto_0_1"), "not 'auto_0_1'"),
        (dict(target_entropy="auto_inf"), "not 'auto_inf'"),
        (
            dict(policy="MlpPolicy", critic="categorical", policy_kwargs={}),
            "needs a policy of this package, not SACPolicy",
        ),
        (dict(policy_kwargs=dict(value_atoms=(5, 0.0, 1.0))), "leave value_atoms out"),
        (dict(policy_kwargs=dict(critic_options=dict(modul_dim=3))), "Unknown option 'modul_dim' of SoftModPolicy"),
        (dict(policy_kwargs=dict(critic_options=3)), "critic_options must map names to values"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    policy = options.get("policy", "SoftModPolicy")
    rest = {name: value for name, value in options.items() if name != "policy"}
    with pytest.raises(ConfigurationError, match=message):
        MultiTaskSAC(policy, make_point_mass_env(M), **{"policy_kwargs": TINY["SoftModPolicy"], **rest})


def test_a_file_keeps_its_kind_of_critic(tmp_path: Path) -> None:
    make_model().save(tmp_path / "mse")
    make_model(**CATEGORICAL).save(tmp_path / "categorical")
    for name, options, message in (
        ("mse", dict(critic="categorical"), "critics were trained by squared errors, not as critic='categorical'"),
        ("categorical", dict(critic="mse"), "on 31 atoms from -20 to 5, not as critic='mse'"),
        ("categorical", dict(v_max=6.0), "'v_max': 6.0}: leave critic, num_atoms, v_min and v_max out"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            MultiTaskSAC.load(tmp_path / name, **options)
    loaded = MultiTaskSAC.load(tmp_path / "categorical", critic_target="mean", policy_delay=2)
    assert (loaded.critic_kind, loaded.critic_target_kind, loaded.policy_delay) == ("categorical", "mean", 2)


def test_a_file_of_a_kind_that_is_no_more(tmp_path: Path) -> None:
    model = make_model(**CATEGORICAL)
    model.learn(10 * M)
    vars(model).update(critic_kind="hl_gauss")
    model.save(tmp_path / "model")
    for options in (dict[str, Any](), dict[str, Any](safe=True, policy="SoftModPolicy")):
        message = r"critic='hl_gauss', which is no more.*load the model with critic='categorical'"
        with pytest.raises(ConfigurationError, match=message):
            MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), **options)
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), critic="categorical")
    assert same(parameters(loaded.critic), parameters(model.critic))
    loaded.learn(10 * M)
    assert loaded._n_updates > model._n_updates


def test_attributes_that_change_meanwhile() -> None:
    """Critics stay what they are, and atoms where they are."""
    model = make_model(**CATEGORICAL)
    model.learn(20 * M)
    model.v_max = 6.0
    with pytest.raises(ConfigurationError, match=r"'v_max': 6.0}: leave critic, num_atoms, v_min and v_max out"):
        model.train(1, 8 * M)
    model.v_max = 5.0
    model.critic_kind = "mse"
    with pytest.raises(ConfigurationError, match=r"on 31 atoms from -20 to 5, not as critic='mse'"):
        model.train(1, 8 * M)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("policy_delay", 0, "policy_delay must be at least 1, not 0"),
        ("critic_target_kind", "max", "Unknown critic_target 'max'"),
        ("critic_kind", "categoric", "Unknown critic 'categoric': did you mean 'categorical'"),
    ],
)
def test_attributes_that_change_to_what_cannot_be(name: str, value: object, message: str) -> None:
    model = make_model(**CATEGORICAL)
    model.learn(20 * M)
    setattr(model, name, value)
    with pytest.raises(ConfigurationError, match=message):
        model.train(1, 8 * M)


def test_a_scale_without_room_for_returns() -> None:
    model = make_model(v_max=0.0, v_min=-1.0)
    model.learn(20 * M)
    model.reward_scaling = "per-task"
    with pytest.raises(ConfigurationError, match=r"v_max must be positive, not 0\.0"):
        model.train(1, 8 * M)
