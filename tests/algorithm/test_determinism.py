"""The same seed gives the same parameters, bit for bit: every method, also with overlap, and in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch as th
from every_method import DISTINCT
from small_networks import TINY
from worker_envs import M, make_seeded

from sb3_softmod import MultiTaskSAC, MultiTaskVecEnv, MultiTaskVecNormalize
from sb3_softmod.methods import METHODS

STEPS = 20 * M
#: With the sizes below, the shallow network is the deep one.
NAMES = [name for name in DISTINCT if name not in ("softmod_shallow", "softmod_shallow_categorical")]


def make_env(n_workers: int) -> MultiTaskVecEnv:
    """Envs that draw random numbers in each step and end their episodes by chance."""
    return MultiTaskVecEnv([partial(make_seeded, task) for task in range(M)], n_workers=n_workers)


@pytest.fixture(scope="module")
def here() -> Iterator[MultiTaskVecEnv]:
    env = make_env(n_workers=0)
    yield env
    env.close()


@pytest.fixture(scope="module")
def workers() -> Iterator[MultiTaskVecEnv]:
    env = make_env(n_workers=2)
    yield env
    env.close()


def learned(name: str, env: Any, seed: int = 0, **kwargs: Any) -> dict[str, th.Tensor]:
    """Everything that a method has learned: parameters, temperatures and the state of the optimizers."""
    method = METHODS[name]
    assert isinstance(method.policy, str)
    options: dict[str, Any] = dict(batch_size=4 * M, learning_starts=5 * M, buffer_size=100 * M, device="cpu")
    model: MultiTaskSAC = method.make(env, policy_kwargs=TINY[method.policy], seed=seed, **options, **kwargs)
    model.learn(STEPS)
    assert model._n_updates == STEPS // M - 5
    assert model.log_ent_coef is not None
    found = {**model.policy.state_dict(), "log_ent_coef": model.log_ent_coef.detach()}
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert optimizer is not None
        for state in optimizer.state_dict()["state"].values():
            found |= {f"state {len(found)}": th.as_tensor(value).clone() for value in state.values()}
    return {key: value.clone() for key, value in found.items()}


@cache
def alone(name: str, overlap: bool) -> dict[str, th.Tensor]:
    """What a method learns in this process, with which the others are compared."""
    env = make_env(n_workers=0)
    found = learned(name, env, overlap=overlap)
    env.close()
    return found


def different(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not th.equal(value, second[name])]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed(name: str, here: MultiTaskVecEnv) -> None:
    first = alone(name, False)
    assert different(first, learned(name, here)) == []
    assert len(different(first, learned(name, here, seed=1))) > len(first) / 2


@pytest.mark.parametrize("name", NAMES)
def test_overlap(name: str) -> None:
    """The actions come from the policy before the gradient step. With worker processes it is the same, see below."""
    assert different(alone(name, True), alone(name, False)) != []


@pytest.mark.parametrize(("name", "overlap"), [("softmod_deep", False), *((name, True) for name in NAMES)])
def test_worker_processes(name: str, overlap: bool, workers: MultiTaskVecEnv) -> None:
    assert different(alone(name, overlap), learned(name, workers, overlap=overlap)) == []


def test_new_envs_and_normalisation() -> None:
    """Nothing is left in the envs that the other tests share."""
    runs = []
    for n_workers in (0, 1, 3):
        env = make_env(n_workers)
        runs.append(learned("softmod_deep", MultiTaskVecNormalize(env)))
        env.close()
    assert [different(runs[0], run) for run in runs] == [[], [], []]
