"""The published comparison: its settings by task set, and that methods and RL Zoo's files have them."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from point_mass import PointMass, make_point_mass_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_softmod import MultiTaskSAC, SoftModularNetwork, TaskEnv
from sb3_softmod.envs.metaworld import MEMBERS as METAWORLD
from sb3_softmod.envs.task_sets import METAWORLD_HORIZON, TASK_SETS
from sb3_softmod.methods import METHODS, Method, join_kwargs
from sb3_softmod.networks import MultiHeadNetwork
from sb3_softmod.published_settings import ENV_STEPS, ENVS, SCHEDULE, SIZES
from sb3_softmod.runs.parameters import count_parameters
from sb3_softmod.zoo.configs import block_of, complete, find_config, load_config

#: Of the paper, whose authors' code clips; that of single-task SAC was not released.
UNCLIPPED = ["single_task_sac", "care", "paco", "moore", "film", "mt_sac_pcgrad", "brc"]
UNCLIPPED += ["mt_sac_gradnorm", "mt_sac_famo", "mt_sac_uncertainty"]
UNCLIPPED += ["mt_sac_cagrad", "mt_sac_nash_mtl", "mt_sac_fairgrad"]
UNCLIPPED += ["softmod_shallow_categorical", "softmod_deep_categorical"]
CLIPPED = [name for name in METHODS if name.startswith(("softmod", "mt_mh", "mix", "hard")) and name not in UNCLIPPED]
CLIPPED += ["mt_sac"]


def make_like(tasks: str, reverse: bool = False) -> VecEnv:
    """Point masses with the names of Meta-World's tasks."""
    names = list(METAWORLD[tasks])[:: -1 if reverse else 1]
    return DummyVecEnv([partial(_make_task, task, names) for task in range(len(names))])


def _make_task(task: int, names: list[str]) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(task), 5), task, names)


def make(name: str, env: VecEnv, **kwargs: Any) -> MultiTaskSAC:
    return METHODS[name].make(env, device="cpu", buffer_device="cpu", **kwargs)


@pytest.mark.parametrize("tasks", ["MT10", "MT50"])
def test_every_method_has_the_published_schedule(tasks: str) -> None:
    """From the registry as from RL Zoo's file."""
    M = len(METAWORLD[tasks])
    model = make("moore", make_like(tasks), policy_kwargs=dict(net_arch=[8]))
    assert (model.batch_size, model.buffer_size) == ((1280, 1_000_000) if tasks == "MT10" else (6400, 10_000_000))
    assert (model.learning_starts, model.policy_at_warmup) == (4000 * M, True)
    assert (model.learning_rate, model.gamma, model.tau, model.gradient_steps) == (3e-4, 0.99, 0.005, 1)
    assert (ENVS["n_envs"][tasks], ENVS["horizon"][tasks]) == (M, METAWORLD_HORIZON)
    config = load_config(find_config("paper"), MultiTaskSAC)
    for env in (f"{tasks}-Fixed", f"{tasks}-Conditioned"):
        for method in METHODS.values():
            found = complete(block_of(config, env), method, TASK_SETS[env], config)
            expected = {name: by_set[tasks] for name, by_set in SCHEDULE.items()}
            expected |= dict(n_envs=M, n_timesteps=method.env_steps[tasks], policy=method.policy)
            expected["policy_kwargs"] = join_kwargs(method.default_kwargs, method.network_options(tasks))
            assert found == {**expected, **method.options}


def test_every_number_has_a_source() -> None:
    for rows in (SCHEDULE, ENVS, ENV_STEPS, *SIZES.values()):
        for name, row in rows.items():
            assert set(row) == {"MT10", "MT50"}, name
            assert len(row.source) > 10, name


def test_budgets() -> None:
    ours = {"softmod", "mix_expert", "hard_routing", "single_task_sac"}
    for name, method in METHODS.items():
        expected = (15, 50) if name.startswith(tuple(ours)) else (10, 50) if name == "brc" else (20, 100)
        assert (method.env_steps["MT10"], method.env_steps["MT50"]) == tuple(1_000_000 * n for n in expected), name


@pytest.mark.parametrize(
    ("name", "option", "sizes", "parameter", "axis"),
    [
        ("care", "num_encoders", (6, 10), "encoders.layers.0.weight", 1),
        ("paco", "num_parameter_sets", (5, 20), "composition", 2),
        ("moore", "num_experts", (4, 6), "task_weights", 2),
    ],
)
def test_networks_grow_with_the_task_set(
    name: str, option: str, sizes: tuple[int, int], parameter: str, axis: int
) -> None:
    small = dict(net_arch=[32])
    for env, expected in (
        (make_like("MT10"), sizes[0]),
        (make_like("MT50"), sizes[1]),
        (make_like("MT50", reverse=True), sizes[1]),  # the same tasks
        (make_point_mass_env(2), sizes[0]),  # no published set: the network's default
    ):
        model = make(name, env, buffer_size=500, policy_kwargs=small)
        for module in (model.actor, model.critic):
            assert dict(module.named_parameters())[f"network.{parameter}"].shape[axis] == expected
    own = make(name, make_like("MT50"), buffer_size=500, policy_kwargs={**small, option: 3}, gamma=0.5)
    assert own.policy_kwargs[option] == 3
    assert own.gamma == 0.5  # what is passed goes before what was published
    few, many = (count_parameters(METHODS[name], 50, tasks).actor for tasks in ("MT10", "MT50"))
    assert many > few


def test_clipping_by_method() -> None:
    assert sorted(CLIPPED + UNCLIPPED) == sorted(METHODS)
    assert {str(METHODS[name].options.get("max_grad_norm")) for name in CLIPPED} == {"[1.0, 0.5]"}
    assert not any("max_grad_norm" in METHODS[name].options for name in UNCLIPPED)
    assert "max_grad_norm" not in Method("mine", "here", "MTMlpPolicy").options


class Replayed(ReplayBuffer):
    """Gives the same batch each time."""

    def __init__(self, batch: ReplayBufferSamples) -> None:
        self.batch = batch

    def sample(self, *_: Any, **__: Any) -> ReplayBufferSamples:
        return self.batch


def one_step(model: MultiTaskSAC, reward: float) -> ReplayBufferSamples:
    """A gradient step on final transitions, whose target is the reward; gradients stay where they are."""
    generator = th.Generator().manual_seed(0)
    obs = th.cat([th.randn(32, 2, generator=generator), th.eye(4).repeat(8, 1)], 1)
    actions = th.rand(32, 2, generator=generator) * 2 - 1
    batch = ReplayBufferSamples(obs, actions, obs.clone(), th.ones(32, 1), th.full((32, 1), reward))
    model._setup_learn(0)
    model.replay_buffer = Replayed(batch)
    model.train(1, 32)
    return batch


@pytest.mark.parametrize("reward", [0.05, 10.0], ids=["within the limit", "beyond it"])
def test_critics_are_clipped_as_by_the_authors(reward: float) -> None:
    """Their loss of a critic is the mean of its squared errors, and its gradient is clipped to 1."""
    make_official = partial(
        make, "softmod_official", make_point_mass_env(4), buffer_size=100, batch_size=32, seed=0,
        policy_kwargs=dict(embedding_dim=16, module_dim=8, routing_dim=8),
    )  # fmt: skip
    model, twin = make_official(), make_official()
    batch = one_step(model, reward)
    q_values = twin.critic(batch.observations, batch.actions)
    for member, q in enumerate(q_values):
        gradients = th.autograd.grad((q - reward).square().mean(), list(twin.critic.parameters()), retain_graph=True)
        theirs = [gradient[member] for gradient in gradients]
        norm = float(th.cat([gradient.flatten() for gradient in theirs]).norm())
        assert (norm > 1) == (reward == 10)
        ours = [p.grad[member] for p in model.critic.parameters() if p.grad is not None]
        assert len(ours) == len(theirs)
        for mine, their in zip(ours, theirs, strict=True):  # Adam does not mind the factor
            th.testing.assert_close(2 * mine, their / max(norm, 1.0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("policy", ["MTMlpPolicy", "MlpPolicy"])
@pytest.mark.parametrize("limits", [[1e-3, 4e-3], (1e-3, 4e-3)])
def test_two_limits(policy: str, limits: Any) -> None:
    """The first is the actor's, the second that of each critic."""
    options: dict[str, Any] = dict(batch_size=32, policy_kwargs=dict(net_arch=[16]), seed=0, device="cpu")
    model = MultiTaskSAC(policy, make_point_mass_env(4), max_grad_norm=limits, **options)
    one_step(model, 10.0)

    def norm(gradients: list[th.Tensor]) -> float:
        return float(th.cat([gradient.flatten() for gradient in gradients]).norm())

    assert norm([p.grad for p in model.actor.parameters() if p.grad is not None]) == pytest.approx(1e-3, rel=1e-2)
    grads = [p.grad for p in model.critic.parameters() if p.grad is not None]
    if policy == "MTMlpPolicy":  # twin critics in one network
        members = [[gradient[e] for gradient in grads] for e in range(2)]
    else:
        members = [grads[: len(grads) // 2], grads[len(grads) // 2 :]]
    assert [norm(member) for member in members] == pytest.approx([4e-3] * 2, rel=1e-2)


def test_two_limits_are_saved(tmp_path: Any) -> None:
    model = MultiTaskSAC(
        "MTMlpPolicy", make_point_mass_env(2), max_grad_norm=(1.0, 0.5), policy_kwargs=dict(net_arch=[8])
    )
    model.save(tmp_path / "model")
    for kwargs in ({}, dict(safe=True, env=make_point_mass_env(2), policy="MTMlpPolicy")):
        limits = MultiTaskSAC.load(tmp_path / "model", **kwargs).max_grad_norm  # type: ignore[arg-type]
        assert list(limits) == [1.0, 0.5]  # type: ignore[arg-type]


@pytest.mark.parametrize("by_policy", [True, False])
def test_who_acts_before_learning(by_policy: bool) -> None:
    """With policy_at_warmup the policy, from the first step on, and learning begins no sooner."""
    model = MultiTaskSAC(
        "MTMlpPolicy",
        make_point_mass_env(4),
        learning_starts=40,
        batch_size=8,
        policy_at_warmup=by_policy,
        policy_kwargs=dict(net_arch=[8]),
        seed=0,
        device="cpu",
    )
    last = dict(model.actor.named_parameters())
    with th.no_grad():  # a policy that one recognises: 0.5 and -0.5, with next to no noise
        last["network.mlp.layers.1.weight"].zero_()
        last["network.mlp.layers.1.bias"].copy_(th.tensor([[np.arctanh(0.5), np.arctanh(-0.5), -20.0, -20.0]]))
    model.learn(40)
    assert model._n_updates == 0
    actions = model.replay_buffer.sample(400).actions.numpy()  # type: ignore[union-attr]
    of_policy = np.isclose(actions, [0.5, -0.5], atol=1e-3).all(1)
    assert of_policy.all() if by_policy else not of_policy.any()
    model.learn(8, reset_num_timesteps=False)
    assert model._n_updates == 2


#: Layers, units and relative parameters of MT-MH-SAC in Table 2.
TABLE_2 = [(3, 400, 1.2), (4, 400, 1.6), (5, 400, 2.0), (6, 400, 2.4), (4, 600, 3.3), (5, 600, 4.2)]


@pytest.mark.parametrize(
    ("options", "one_hot", "reference"),
    [(dict(state_hidden=[]), False, 399_984), (dict(embedding_dim=256, state_hidden=[400]), True, 409_760)],
)
def test_readings_of_table_2(options: dict[str, Any], one_hot: bool, reference: int) -> None:
    """Both that the note under the table of parameters names give the paper's column, rounded."""

    def size(network: th.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    state, outputs, M = 12, 8, 50
    ours = size(SoftModularNetwork(state, outputs, M, preset="deep", **options))
    assert ours == reference
    for layers, units, ratio in TABLE_2:
        baseline = size(MultiHeadNetwork(state, outputs, M, net_arch=[units] * layers)) - (not one_hot) * M * units
        assert round(baseline / ours, 1) == ratio
