"""make_multitask_env and make_dm_control_env: any gymnasium envs as tasks."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from point_mass import PointMass
from worker_envs import Nested, short

from sb3_softmod import ConfigurationError, SoftModSAC, make_dm_control_env, make_multitask_env

needs_dm_control = pytest.mark.skipif(find_spec("dm_control") is None, reason="the extra dm-control is not installed")

WALKERS = ["walker-stand", "walker-walk", "walker-run"]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """An id that only this process knows, not its workers."""
    gym.register("PointMass-v0", entry_point=lambda **_: PointMass(0), max_episode_steps=4)
    yield
    del gym.registry["PointMass-v0"]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_ids_and_functions_together(n_workers: int) -> None:
    env = make_multitask_env(["PointMass-v0", short, Nested], seed=0, n_workers=n_workers)
    assert env.task_names == ["PointMass-v0", "short", "Nested"]
    assert env.observation_space.shape == (5 + 3,)  # the dictionary of Nested has 3 + 2 numbers
    observations = env.reset()
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(observations[:, 5:], np.eye(3))
    assert np.abs(observations[:2, :2]).min() > 0
    assert not observations[:2, 2:5].any()  # padding
    np.testing.assert_array_equal(observations[2, :3], [0, 0, 1])
    dones = np.array([env.step(np.zeros((3, 2)))[2] for _ in range(12)])
    assert np.flatnonzero(dones[:, 0]).tolist() == [3, 7, 11]  # the horizon of the id
    assert np.flatnonzero(dones[:, 1]).tolist() == [5, 11]  # and of the function's env
    assert not dones[:, 2].any()
    env.close()


def test_names_and_horizon() -> None:
    env = make_multitask_env({"a": "PointMass-v0", "b": lambda: PointMass(2)}, max_episode_steps=7, n_workers=1)
    assert env.task_names == ["a", "b"]
    env.reset()
    dones = np.array([env.step(np.zeros((2, 2)))[2] for _ in range(14)])
    assert np.flatnonzero(dones[:, 0]).tolist() == np.flatnonzero(dones[:, 1]).tolist() == [6, 13]
    env.close()
    assert make_multitask_env("PointMass-v0", n_workers=0).task_names == ["PointMass-v0"]


def run(seed: int | None, **kwargs: Any) -> np.ndarray:
    """The first observations of three resets: ``[3, n_envs, 2]``."""
    env = make_multitask_env({"a": "PointMass-v0", "b": "PointMass-v0"}, seed=seed, **kwargs)
    first = np.array([env.reset()[:, :2] for _ in range(3)])
    env.close()
    return first


def test_seeds() -> None:
    first = run(3, envs_per_task=2, n_workers=0)
    assert len(np.unique(first.reshape(12, 2), axis=0)) == 12  # all different: tasks, copies and episodes
    np.testing.assert_array_equal(run(3, envs_per_task=2, n_workers=2), first)
    assert not np.isin(run(4, envs_per_task=2, n_workers=0), first).any()
    assert not np.isin(run(None, n_workers=0), run(None, n_workers=0)).any()
    env = make_multitask_env([short], seed=3, n_workers=0)
    env.seed(8)  # a seed of the reset goes first
    expected = short().reset(seed=8)[0]
    np.testing.assert_array_equal(env.reset()[0, :2], expected)
    assert not np.array_equal(env.reset()[0, :2], expected)


def test_first_seeds_are_those_of_numpy() -> None:
    env = make_multitask_env({"a": short, "b": short}, seed=3, envs_per_task=2, n_workers=0)
    first = env.reset()
    for task in range(2):
        for copy in range(2):
            seed = int(np.random.SeedSequence(3, spawn_key=(task, copy)).generate_state(1)[0])
            np.testing.assert_array_equal(first[2 * task + copy, :2], short().reset(seed=seed)[0])


def test_terminate_on_success() -> None:
    class Done(PointMass):
        def step(self, action: np.ndarray) -> Any:
            return *super().step(action)[:4], {"success": True}

    env = make_multitask_env({"done": lambda: Done(0)}, terminate_on_success=True, n_workers=1)
    env.reset()
    _, _, dones, infos = env.step(np.zeros((1, 2)))
    assert dones.tolist() == [True]
    assert infos[0]["is_success"]
    assert not infos[0]["TimeLimit.truncated"]
    env.close()


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "The list of tasks is empty"),
        (["PointMas-v0"], {}, r"'PointMas-v0' has the unknown gymnasium id 'PointMas-v0': did you mean 'PointMass-v0'"),
        (["PointMass-v7"], {}, "unknown gymnasium id 'PointMass-v7'"),
        (["PointMass-v0", "PointMass-v0"], {}, r"'PointMass-v0' has the name of another task: .* mapping, \{name: id"),
        ([lambda: PointMass(0)], {}, r"The task <function .* has no name: give each task a name with a mapping"),
        ([PointMass(0)], {}, r"must be a gymnasium id or a function that makes an env \(lambda: \.\.\.\), not <"),
        ({"a": 3}, {}, r"must be a gymnasium id or a function .*, not 3"),
        ({"old": object}, {}, r"made <object .*, which is no gymnasium.Env: .*shimmy.GymV26CompatibilityV0"),
        (["PointMass-v0", "Pendulum-v1"], {}, "'PointMass-v0' and 'Pendulum-v1' differ in their action space: Box"),
        (["PointMass-v0"], dict(max_episode_steps=0), "max_episode_steps must be at least 1, not 0"),
        (["PointMass-v0"], dict(envs_per_task=0), "envs_per_task must be at least 1, not 0"),
    ],
)
def test_bad_input_is_refused(tasks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_multitask_env(tasks, n_workers=0, **options)


@needs_dm_control
def test_workers_do_not_load_torch() -> None:
    code = (
        "import sb3_softmod.envs.gymnasium_tasks, shimmy, dm_control.suite, sys\n"
        "print('torch' in sys.modules, 'stable_baselines3' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


# --------------------------------------------------------------- dm_control


@needs_dm_control
def test_training_on_dm_control() -> None:
    env = make_dm_control_env(WALKERS, seed=0, max_episode_steps=10, n_workers=2)
    assert env.task_names == WALKERS
    assert env.observation_space.shape == (24 + 3,)
    model = SoftModSAC(
        "SoftModPolicy",
        env,
        learning_starts=30,
        batch_size=12,
        seed=0,
        policy_kwargs=dict(embedding_dim=16, module_dim=8),
    )
    before = [p.detach().clone() for p in model.actor.parameters()]
    model.learn(120)
    assert model._n_updates == 30
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert all((p != q).any() for p, q in zip(model.actor.parameters(), before, strict=True))
    assert model.episode_statistics is not None
    assert model.episode_statistics.num_episodes() == [4, 4, 4]
    returns = [row["return"] for row in env.episode_table()]
    assert all(0 < value < 10 for value in returns)  # rewards of dm_control are from 0 to 1
    env.close()


@needs_dm_control
def test_dm_control_is_reproducible() -> None:
    first = []
    for _ in range(2):
        env = make_dm_control_env(["cartpole-balance"], seed=5, n_workers=0)
        first.append(np.concatenate([env.reset(), env.step(np.zeros((1, 1)))[0], env.reset()]))
        env.close()
    np.testing.assert_array_equal(first[0], first[1])


@needs_dm_control
@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["walker-jog"], "Unknown task of dm_control 'walker-jog': did you mean 'walker-run'"),
        (["walker-run", "walker-run"], "'walker-run' is listed 2 times: use envs_per_task instead"),
        (["walker-run", "cartpole-balance"], "'walker-run' and 'cartpole-balance' differ in their action space"),
    ],
)
def test_bad_dm_control_tasks(tasks: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_dm_control_env(tasks)


@needs_dm_control
def test_a_horizon_above_that_of_dm_control() -> None:
    with pytest.raises(ConfigurationError, match="max_episode_steps must be from 1 to 1000, not 1001"):
        make_dm_control_env(["cartpole-balance"], max_episode_steps=1001)
    make_dm_control_env("lqr-lqr_2_1", max_episode_steps=1001, n_workers=0).close()  # has no end of its own


def test_without_dm_control(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "dm_control.suite":
            raise ModuleNotFoundError("No module named 'dm_control'")
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        ConfigurationError, match=r"No module named 'dm_control'.*pip install 'sb3-softmod\[dm-control\]'"
    ):
        make_dm_control_env(WALKERS)


def test_an_id_that_a_function_asks_for_is_known_to_workers() -> None:
    """As those of Meta-World are, which only their import registers."""

    def make() -> gym.Env:
        return gym.wrappers.TransformReward(gym.make("PointMass-v0"), lambda reward: 7.0)

    env = make_multitask_env({"ours": make}, n_workers=1)
    env.reset()
    assert env.step(np.zeros((1, 2)))[1].tolist() == [7]
    env.close()


def test_an_env_of_the_script_that_a_function_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered by its place in the script, which workers do not run."""
    monkeypatch.setattr(sys.modules["__main__"], "OfTheScript", PointMass, raising=False)
    monkeypatch.setitem(gym.registry, "OfTheScript-v0", EnvSpec("OfTheScript-v0", entry_point="__main__:OfTheScript"))
    env = make_multitask_env({"ours": lambda: gym.make("OfTheScript-v0", goal=1)}, n_workers=1, max_episode_steps=5)
    assert env.reset().shape == (1, 2 + 1)
    env.close()


def test_metaworlds_own_id_in_workers() -> None:
    def make(name: str) -> Any:
        import metaworld  # registers the ids, here alone

        assert metaworld
        return partial(gym.make, "Meta-World/MT1", env_name=name)

    env = make_multitask_env({"reach": make("reach-v3")}, max_episode_steps=5, n_workers=1)
    assert env.reset().shape == (1, 39 + 1)
    for _ in range(5):
        _, _, dones, infos = env.step(np.zeros((1, 4)))
    assert dones.tolist() == [True]
    assert infos[0]["episode"]["l"] == 5
    env.close()


def test_an_id_that_no_worker_can_know() -> None:
    def make() -> gym.Env:
        env = gym.make("PointMass-v0")  # of another env inside the one that is returned
        return PointMass(int(env.action_space.shape == (3,)))

    with pytest.raises(ConfigurationError, match=r"Task 0 \(env 0\): .*`PointMass`.* import what registers the id"):
        make_multitask_env({"nested": make}, n_workers=1)
    with pytest.raises(ConfigurationError, match=r"function of task 'a' asks for an unknown id: .*`Nowhere`"):
        make_multitask_env({"a": lambda: gym.make("Nowhere-v0")}, n_workers=0)
