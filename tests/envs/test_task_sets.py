"""Task sets by name, and as ids of gymnasium."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from point_mass import make_task

from sb3_softmod import ConfigurationError, MultiTaskSAC, make_metaworld_env
from sb3_softmod.envs.make import make_task_set_env
from sb3_softmod.envs.registered import TasksInTurn, task_names
from sb3_softmod.envs.task_sets import TASK_SETS, get_task_set

MT3 = ["reach-v3", "drawer-close-v3", "button-press-topdown-v3"]


def test_names() -> None:
    single = [name for name in TASK_SETS if not name.startswith(("MT", "ML", "DMC"))]
    assert single == list(ALL_V3_ENVIRONMENTS)
    for tasks in (10, 25, 50):
        for goals in ("Fixed", "Conditioned"):
            assert len(task_names(TASK_SETS[f"MT{tasks}-{goals}"])) == tasks
    assert list(task_names(TASK_SETS["MT3"])) == MT3
    assert TASK_SETS["MT50-Fixed"].gym_id == "SoftMod/MT50-Fixed-v3"
    assert get_task_set("SoftMod/reach-v3") is get_task_set("reach-v3")
    with pytest.raises(ConfigurationError, match="Unknown env 'MT10-Conditoned': did you mean 'MT10-Conditioned'"):
        get_task_set("MT10-Conditoned")


def test_the_splits_of_meta_world() -> None:
    """ML10 and ML45 as the benchmark cuts them, by each way to an env."""
    splits = {name: task_names(TASK_SETS[name]) for name in ("ML10-train", "ML10-test", "ML45-train", "ML45-test")}
    assert [len(names) for names in splits.values()] == [10, 5, 45, 5]
    assert not set(splits["ML10-train"]) & set(splits["ML10-test"])
    assert {*splits["ML45-train"], *splits["ML45-test"]} == set(ALL_V3_ENVIRONMENTS)
    ten = ("drawer-open-v3", "door-close-v3", "shelf-place-v3", "sweep-into-v3", "lever-pull-v3")
    assert splits["ML10-test"] == ten
    forty_five = {"bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3"}
    assert set(splits["ML45-test"]) == forty_five
    env = make_metaworld_env("ML10-test", seed=0, n_workers=0)
    assert env.get_attr("task_names")[0] == ten
    assert env.reset().shape == (5, 39 + 5)
    env.close()
    info = gym.make("SoftMod/ML45-test-v3", task="door-lock-v3", seed=0).reset()[1]
    assert info["task_name"] == "door-lock-v3"
    with pytest.raises(
        ConfigurationError,
        match=r"Unknown task or task set 'ML10': did you mean 'MT10' or .* or 'ML10-test' or 'ML10-train'",
    ):
        make_metaworld_env("ML10")
    with pytest.raises(ConfigurationError, match="Unknown env 'ML45_train': did you mean 'ML45-train'"):
        get_task_set("ML45_train")


def test_a_name_means_the_same_everywhere() -> None:
    def goals_of(name: str) -> list[list[float]]:
        """The goals of three episodes of the first task, reach-v3."""
        env = make_metaworld_env(name, seed=0, n_envs=1, n_workers=0)
        goals = [np.asarray(env.reset())[0, 36:39].tolist() for _ in range(3)]
        env.close()
        return goals

    of_short, fixed = goals_of("MT10"), goals_of("MT10-Fixed")
    assert of_short == goals_of("MT10-Conditioned")
    assert of_short[0] != of_short[1]
    assert fixed == [fixed[0]] * 3
    assert get_task_set("MT10") is get_task_set("SoftMod/MT10-Conditioned-v3")
    assert gym.spec("SoftMod/MT10-v3").kwargs == gym.spec("SoftMod/MT10-Conditioned-v3").kwargs
    hint = "'MT10' or 'MT10-Conditioned' or 'MT10-Fixed'"
    for refused in (get_task_set, make_metaworld_env):
        with pytest.raises(ConfigurationError, match=hint):
            refused("MT11")


def test_importing_the_package_registers_the_ids_and_no_simulator() -> None:
    code = (
        "import sb3_softmod, gymnasium, sys\n"
        "env = gymnasium.spec('SoftMod/MT10-Conditioned-v3')\n"
        "print(*[name in sys.modules for name in ('torch', 'metaworld', 'mujoco')])\n"
        "gymnasium.make('SoftMod/reach-v3').reset(seed=0)\n"
        "print('torch' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False"] * 4


def test_a_single_task() -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("SoftMod/reach-v3", horizon=3, seed=0))
    observation, info = env.reset(seed=0)
    assert observation.shape == (40,)
    assert info["task_name"] == "reach-v3"
    for step in range(3):
        *_, truncated, info = env.step(env.action_space.sample())
        assert truncated == (step == 2)
    assert info["episode"]["l"] == 3
    assert not info["is_success"]


def test_the_tasks_of_a_set_in_turn() -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("SoftMod/MT3-v3", horizon=2, seed=0))
    assert env.get_wrapper_attr("num_tasks") == 3
    for episode in range(4):
        observation, info = env.reset()
        assert info["task_name"] == MT3[episode % 3]
        assert observation[39:].argmax() == env.get_wrapper_attr("task_id") == episode % 3
        env.step(env.action_space.sample())
        *_, truncated, info = env.step(env.action_space.sample())
        assert truncated
        assert info["episode"]["l"] == 2


def test_a_seed_reaches_all_tasks_in_turn() -> None:
    def starts(seed: int | None) -> list[np.ndarray]:
        return [env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(5))]

    first = []
    for _ in range(2):
        env = TasksInTurn([lambda copy, task=task: make_task(task, 3) for task in range(3)])
        first.append(starts(7))
        env.reset()  # the seed then begins in the middle of a round
        np.testing.assert_array_equal(starts(7), first[-1])
    np.testing.assert_array_equal(first[0], first[1])
    assert [start[2:].argmax() for start in first[0]] == [1, 2, 0] * 2
    assert [env.reset(seed=seed)[0][2:].argmax() for seed in range(4)] == [0, 1, 2, 0]
    assert len({start[:2].tobytes() for start in first[0]}) == 6  # each task begins elsewhere, in each episode
    check_env(env, skip_render_check=True)


def test_the_seed_of_a_model_is_that_of_a_registered_set() -> None:
    def goals(seed: int) -> list[list[float]]:
        options: dict[str, Any] = dict(buffer_size=100, policy_kwargs=dict(net_arch=[4]))
        env: Any = MultiTaskSAC("MTMlpPolicy", "SoftMod/MT3-v3", seed=seed, **options).get_env()
        return [env.reset()[0, 36:39].tolist() for _ in range(4)]

    assert goals(3) == goals(3) != goals(4)


def test_one_task_of_a_set() -> None:
    env = gym.make("SoftMod/MT3-v3", task="drawer-close-v3")
    for _ in range(2):
        observation, info = env.reset()
        assert info["task_name"] == "drawer-close-v3"
        np.testing.assert_array_equal(observation[39:], [0, 1, 0])
    with pytest.raises(ConfigurationError, match="Unknown task 'reach' of MT3: did you mean 'reach-v3'"):
        gym.make("SoftMod/MT3-v3", task="reach")
    with pytest.raises(ConfigurationError, match="Unknown env argument 'goal' of MT3: did you mean 'goals'"):
        gym.make("SoftMod/MT3-v3", goal="fixed")


def test_fixed_and_conditioned() -> None:
    def goals(gym_id: str) -> int:
        env = gym.make(gym_id, task="push-v3", seed=0)
        return len({tuple(env.reset()[0][36:39]) for _ in range(4)})

    assert goals("SoftMod/MT10-Fixed-v3") == 1
    assert goals("SoftMod/MT10-Conditioned-v3") > 1


def test_all_tasks_side_by_side() -> None:
    envs = gym.make_vec("SoftMod/MT10-Conditioned-v3", seed=0)
    observations, infos = envs.reset(seed=0)
    assert observations.shape == (10, 49)
    np.testing.assert_array_equal(observations[:, 39:], np.eye(10))
    assert list(infos["task_name"]) == list(task_names(TASK_SETS["MT10-Conditioned"]))
    rewards = envs.step(envs.action_space.sample())[1]
    assert np.isfinite(rewards).all()
    with pytest.raises(ConfigurationError, match="num_envs must be a multiple of the 10 tasks of MT10-Fixed, not 15"):
        gym.make_vec("SoftMod/MT10-Fixed-v3", num_envs=15)
    copies: Any = gym.make_vec("SoftMod/MT3-v3", num_envs=6)
    assert copies.get_attr("task_id") == (0, 0, 1, 1, 2, 2)


def test_numbers_of_envs() -> None:
    task_set = get_task_set("MT3")
    for n_envs, tasks in ((2, [0, 1]), (3, [0, 1, 2]), (6, [0, 0, 1, 1, 2, 2])):
        env = make_task_set_env(task_set, n_envs, options=dict(seed=0), n_workers=0)
        assert env.get_attr("task_id") == tasks
        env.close()
    with pytest.raises(ConfigurationError, match="n_envs must be at most the number of tasks of MT3, 3, or a multiple"):
        make_task_set_env(task_set, 4, options={})


def test_settings() -> None:
    assert TASK_SETS["MT10-Fixed"].settings({}) == dict(goals="fixed", horizon=200, reward_version="v2")
    changed = TASK_SETS["MT10-Fixed"].settings(dict(goals="random", horizon=500, reward_version="v1"))
    assert changed == dict(goals="random", horizon=500, reward_version="v1")
    assert TASK_SETS["DMC-Walker"].settings({}) == dict(goals=None, horizon=1000, reward_version=None)


@pytest.mark.skipif(find_spec("dm_control") is None, reason="the extra dm-control is not installed")
@pytest.mark.parametrize("name", [name for name in TASK_SETS if name.startswith("DMC")])
def test_dm_control(name: str) -> None:
    envs = gym.make_vec(TASK_SETS[name].gym_id, seed=0)
    names = task_names(TASK_SETS[name])
    observations, infos = envs.reset(seed=0)
    assert list(infos["task_name"]) == list(names)
    np.testing.assert_array_equal(observations[:, -len(names) :], np.eye(len(names)))
