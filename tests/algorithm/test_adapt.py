"""New tasks on a trained model: what learns, what is refused, and that the old tasks stay as they are, to the bit."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from adapted_models import NEW, M, assert_same, make_new, new_env, of_old_tasks, trained
from gymnasium import spaces
from point_mass import PointMass, make_point_mass_env
from resumable_run import everything
from small_networks import TINY
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import (
    CheckpointCallback,
    ConfigurationError,
    MultiTaskSAC,
    MultiTaskVecEnv,
    MultiTaskVecNormalize,
    SoftModSAC,
    TaskEnv,
)
from sb3_softmod.envs.some_tasks import SomeTasks
from sb3_softmod.evaluation.evaluate import evaluate_tasks, rollout
from sb3_softmod.networks import AdaptedNetwork
from sb3_softmod.networks.tunable import TunableParts
from sb3_softmod.policies import POLICIES
from sb3_softmod.routing.routes import RoutingStatistics, sample_routing

CASES = [(name, word) for name, policy in POLICIES.items() for word in TunableParts.of(policy.network_class).known()]


@pytest.mark.parametrize(("policy", "tune"), CASES)
def test_the_old_tasks_stay(policy: str, tune: Any) -> None:
    wide = {"embedding_dim": 16} if policy in ("CAREPolicy", "FiLMPolicy") else {}  # a ReLU may silence a mean of 3
    model = trained(policy, policy_kwargs=TINY[policy] | wide)
    before = of_old_tasks(model)
    new = model.adapt(new_env(), tune=tune, init="mean")
    assert new.task_names == [*model.task_names, *NEW]
    assert_same(of_old_tasks(new), before)
    parameters = {name: p.clone() for name, p in new.policy.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that no env plays the old tasks is as it should be
        new.learn(60)
    assert new._n_updates > 0
    changed = {name for name, p in new.policy.named_parameters() if not th.equal(p, parameters[name])}
    learning = {name for name, p in new.policy.named_parameters() if p.requires_grad}
    assert changed <= learning
    assert any(name.startswith("actor") for name in changed)
    assert any(name.startswith("critic.") for name in changed)
    assert any(name.startswith("critic_target") for name in changed)
    if tune != "all":
        assert_same(of_old_tasks(new), before)
    assert_same(of_old_tasks(model), before)


def test_frozen_parameters_cost_nothing() -> None:
    new = trained().adapt(new_env(), init="mean")
    new.learn(60)
    for module in (new.actor, new.critic):
        learning = [p for p in module.parameters() if p.requires_grad]
        assert [p for group in module.optimizer.param_groups for p in group["params"]] == learning
        assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
        assert sum(p.numel() for p in learning) < sum(p.numel() for p in module.parameters()) / 3


@pytest.mark.parametrize(
    ("policy", "tune"),
    [("MTMlpPolicy", "routing"), ("FiLMPolicy", "routing"), ("BROPolicy", "task"), ("SingleTaskPolicy", "task")],
)
def test_words_without_a_meaning(policy: str, tune: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"tune='{tune}' has no meaning for {policy}: take .*'all'"):
        trained(policy, steps=0).adapt(new_env(), tune=tune)


class WideEnv(PointMass):
    def __init__(self, size: int = 3, actions: int = 2) -> None:
        super().__init__(0)
        self.observation_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)


@pytest.mark.parametrize(
    ("tasks", "kwargs", "message"),
    [
        ([], {}, "at least one task, and the list is empty"),
        (["reach-v2"], {}, "'reach-v2'.*reach-v3"),
        (None, {}, "tasks must be names of Meta-World tasks, or a vectorised env"),
        (
            lambda: new_env(),
            {"tune": "modules"},
            "tune='modules' is none of the parts of SoftModPolicy: take 'routing'",
        ),
        (lambda: new_env(), {"init": "best"}, "init.*'best'"),
        (lambda: new_env(), {"keep_tasks": 1}, "keep_tasks must be True or False"),
        (lambda: new_env(), {"learning_rat": 1}, "learning_rate"),
        (lambda: new_env(), {"policy_kwargs": {}}, "adapt takes no policy_kwargs"),
        (lambda: new_env(("corner-1", "new")), {}, "knows the task 'corner-1' already"),
        (
            lambda: DummyVecEnv([lambda: TaskEnv(WideEnv(), 0, ["wide"])]),
            {},
            "have 2 entries.*those of the new tasks 3",
        ),
        (lambda: DummyVecEnv([lambda: TaskEnv(WideEnv(2, 4), 0, ["many"])]), {}, r"actions are Box.*\(2,\).*\(4,\)"),
        (
            lambda: DummyVecEnv([lambda: TaskEnv(WideEnv(), 0, ["corner-0", "corner-1", "corner-2", "wide"])]),
            {},
            "have 2 entries.*those of the new tasks 3",
        ),
        (lambda: MultiTaskVecNormalize(new_env()), {}, "must not be normalised by itself"),
        (lambda: new_env(), {"critic": "categorical"}, "were trained by squared errors, not as critic='categorical'"),
    ],
)
def test_bad_input(tasks: Any, kwargs: dict[str, Any], message: str) -> None:
    model = trained(steps=0)
    with pytest.raises(ConfigurationError, match=message):
        model.adapt(tasks() if callable(tasks) else tasks, **{"init": "mean", **kwargs})


def test_distributions_of_returns_stay() -> None:
    model = trained(steps=0, critic="categorical", num_atoms=11, v_max=5.0)
    for other in (dict[str, Any](v_max=6.0), dict[str, Any](critic="mse")):
        with pytest.raises(ConfigurationError, match=r"on 11 atoms from -10 to 5, not as .*leave critic, num_atoms"):
            model.adapt(new_env(), init="mean", **other)
    assert model.adapt(new_env(), init="mean", critic="categorical", v_max=5.0).critic_kind == "categorical"


def test_needs_a_policy_of_this_package() -> None:
    model = MultiTaskSAC("MlpPolicy", make_point_mass_env(M), device="cpu")
    with pytest.raises(ConfigurationError, match="adapt needs a policy of this package, not SACPolicy"):
        model.adapt(new_env())


def test_old_tasks_are_not_played_in_vain() -> None:
    new = trained().adapt(new_env(), init="mean")
    names = new.task_names
    new.set_env(DummyVecEnv([partial(make_new, index, names, range(5)) for index in (0, 3)]))
    with pytest.raises(ConfigurationError, match="The envs play task 'corner-0', of which nothing learns"):
        new.learn(10)


def test_a_model_of_raw_observations_is_not_given_others() -> None:
    with pytest.raises(ConfigurationError, match="was trained on observations as they are"):
        trained().adapt(MultiTaskVecNormalize(new_env()), keep_tasks=False, init="mean")


def test_a_copy_learns_in_envs_of_the_new_tasks() -> None:
    new = trained().adapt(new_env(), init="mean")
    copy = deepcopy(new)
    copy.learn(60)
    assert isinstance(copy.get_env(), SomeTasks)
    assert copy.num_timesteps == 60
    assert new.num_timesteps == 0


@pytest.mark.parametrize("policy", ["SoftModPolicy", "MultiHeadPolicy"])
def test_without_the_old_tasks(policy: str) -> None:
    model = trained(policy)
    new = model.adapt(new_env(), tune="heads", keep_tasks=False, init="mean")
    assert (new.num_tasks, new.task_names) == (2, list(NEW))
    new.learn(60)
    names = [name for name, p in new.actor.named_parameters() if p.requires_grad]
    assert names == [name for name, _ in new.actor.named_parameters() if ".head" in name]


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    ("policy", "tune"), [("SoftModPolicy", "routing"), ("BROPolicy", "heads"), ("MTMlpPolicy", "all")]
)
def test_saved_and_loaded(policy: str, tune: Any, safe: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tune="all": no env plays the old tasks
        new = trained(policy, steps=0).adapt(new_env(), tune=tune, init="mean").learn(60)
        file = io.BytesIO()
        new.save(file)
        file.seek(0)
        options: dict[str, Any] = dict(safe=True, policy=policy) if safe else {}
        again = MultiTaskSAC.load(file, env=new_env(), device="cpu", **options)
        assert again.task_names == new.task_names
        assert_same(of_old_tasks(again), of_old_tasks(new))
        assert again.learning_tasks == new.learning_tasks
        again.learn(30)


def restartable(names: Sequence[str], goals: Sequence[int]) -> MultiTaskVecEnv:
    return MultiTaskVecEnv([partial(make_new, index, names, goals) for index in range(len(names))], n_workers=0)


def test_resumed_bit_for_bit(tmp_path: Path) -> None:
    def adapted() -> MultiTaskSAC:
        env = restartable([f"corner-{i}" for i in range(M)], range(M))
        env.seed(1)
        new = restartable(NEW, (3, 1))
        new.seed(2)
        return trained(env=env).adapt(new, init="mean")

    whole = adapted().learn(120)
    adapted().learn(60, CheckpointCallback(tmp_path, save_freq=25))
    resumed = MultiTaskSAC.resume(tmp_path, restartable(NEW, (3, 1)), device="cpu")
    assert resumed.num_timesteps == 50
    resumed.learn(70, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps == 120
    ours, theirs = everything(resumed), everything(whole)
    assert {name for name, value in ours.items() if value != theirs[name]} <= {"generators"}  # those of this process


def test_the_old_tasks_are_forgotten_where_everything_learns() -> None:
    """In envs of the new tasks alone, without transitions of the old ones; a warning says so."""
    new = trained(steps=0).adapt(new_env(), tune="all", init="mean")
    with pytest.warns(UserWarning, match="No env plays tasks 'corner-0', 'corner-1', 'corner-2': 2 of 5 tasks"):
        new.learn(60)
    again = trained().adapt(new_env(), tune="all", init="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.learn(60)  # from the transitions that there are


def test_mixtures_of_old_and_new_tasks() -> None:
    model = trained(steps=0)
    network = model.adapt(new_env(), init="fresh").actor.network
    assert isinstance(network, AdaptedNetwork)
    rng = np.random.default_rng(0)
    states = th.tensor(rng.uniform(-1, 1, (4, 2)), dtype=th.float32)
    old, new, both = (th.zeros(4, 5) for _ in range(3))
    old[:, 1], new[:, 4] = 1, 1
    both[:, 1], both[:, 4] = 0.25, 0.75
    with th.no_grad():
        wanted = 0.25 * network(states, old) + 0.75 * network(states, new)
        th.testing.assert_close(network(states, both), wanted)
        rows = th.cat([old[:2], new[2:]])
        th.testing.assert_close(network(states, rows)[:, :2], network(states, old)[:, :2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighting", ["famo", "uncertainty"])
def test_learned_weights(weighting: Any) -> None:
    model = trained(loss_weighting=weighting)
    before = of_old_tasks(model)
    new = model.adapt(new_env(), init="mean").learn(60)
    assert new._n_updates > 0
    assert_same(of_old_tasks(new), before)


def test_another_weighting_has_options_of_its_own() -> None:
    model = trained(steps=0, loss_weighting="famo", loss_weighting_kwargs=dict(weight_decay=0.1))
    assert model.adapt(new_env(), init="mean").loss_weighting_kwargs == dict(weight_decay=0.1)
    assert model.adapt(new_env(), init="mean", loss_weighting="uncertainty").loss_weighting_kwargs == {}


def test_gradient_norms_need_a_layer_that_all_tasks_share() -> None:
    model = trained(loss_weighting="gradnorm")
    with pytest.raises(ConfigurationError, match=r"gradnorm.*adapt\(tasks, loss_weighting='uniform'\)"):
        model.adapt(new_env(), init="mean")
    assert model.adapt(new_env(), init="mean", loss_weighting="uniform").learn(60).num_tasks == M + 2
    assert model.adapt(new_env(), tune="all", init="mean", keep_tasks=False).learn(60).num_tasks == 2
    # A frozen layer has gradients too, where something before it learns.
    assert model.adapt(new_env(), tune="routing", init="mean", keep_tasks=False).learn(60).num_tasks == 2
    heads = trained("MultiHeadPolicy", steps=0, loss_weighting="gradnorm")
    with pytest.raises(ConfigurationError, match=r"gradnorm.*nor anything before it learns: adapt\(tasks, loss_weight"):
        heads.adapt(new_env(), tune="heads", init="mean", keep_tasks=False).learn(60)


@pytest.mark.parametrize("policy", ["SoftModPolicy", "HardRoutingPolicy"])
def test_all_tasks_with_surgery(policy: str) -> None:
    model = trained(policy, gradient_surgery="pcgrad")
    names = [*model.task_names, *NEW]
    env = DummyVecEnv([partial(make_new, index, names, range(5)) for index in range(5)])
    new = model.adapt(env, tune="all", init="mean")
    assert len(set(new.get_env().get_attr("task_id"))) == 5  # type: ignore[union-attr]
    new.learn(60)
    assert new._n_updates > 0
    assert new.nonfinite_updates == 0


def test_evaluated_and_drawn_with_the_old_tasks() -> None:
    new = SoftModSAC(
        "SoftModPolicy", make_point_mass_env(M), policy_kwargs=TINY["SoftModPolicy"], batch_size=12, device="cpu"
    ).adapt(new_env(), init="mean")
    env = new.get_env()
    assert env is not None
    found = evaluate_tasks(new, env, n_eval_episodes=2)
    assert found.task_names == new.task_names
    assert found.episodes == [0, 0, 0, 2, 2]
    names = new.task_names
    everything = DummyVecEnv([partial(make_new, index, names, range(5)) for index in range(5)])
    observations, actions = rollout(new, everything, 3)
    samples = sample_routing(new, observations, actions, names)
    assert [each.network for each in samples] == ["actor", "critic 1", "critic 2"]
    assert RoutingStatistics.of(samples[0]).similarity.shape == (5, 5)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_to_the_bit_for_networks_of_real_size(rows: int) -> None:
    """Products of few rows are rounded by how the rows lie in memory, which the number of tasks changes."""
    model = trained(steps=0, policy_kwargs=dict(preset="deep", embedding_dim=128, module_dim=128))
    new = model.adapt(new_env(), init="mean")
    rng = np.random.default_rng(0)
    states, tasks = rng.normal(size=(rows, 2)), np.eye(M)[np.arange(rows) % M]
    before, after = (
        np.concatenate([states, tasks, np.zeros((rows, extra))], 1).astype(np.float32) for extra in (0, len(NEW))
    )
    np.testing.assert_array_equal(
        new.predict(after, deterministic=True)[0], model.predict(before, deterministic=True)[0]
    )
