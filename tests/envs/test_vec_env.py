"""MultiTaskVecEnv: the same trajectories for any number of workers, and no way to hang or to leak."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from point_mass import HORIZON, make_task
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor
from worker_envs import NAMES, M, make_copy, make_odd, make_troubled, make_troubled_env

from sb3_softmod import (
    ConfigurationError,
    MultiTaskVecEnv,
    NonFiniteError,
    SoftModError,
    SoftModSAC,
    TaskEnv,
)


def make_env(num_tasks: int = M, horizon: int = HORIZON, **kwargs: Any) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(
        [partial(make_copy, task, num_tasks=num_tasks, horizon=horizon) for task in range(num_tasks)], **kwargs
    )


def rollout(env: Any, steps: int) -> list[Any]:
    """What a run with random actions gives, with a reset in the middle."""
    rng = np.random.default_rng(0)
    env.seed(5)
    seen = [env.reset()]
    for step in range(steps):
        if step == steps // 3:
            seen.append(env.reset())
        obs, rewards, dones, infos = env.step(rng.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32))
        seen += [obs, rewards, dones]
        for info in infos:
            seen += [info["task_id"], info["task_name"], info["success"], info["TimeLimit.truncated"]]
        for info in (info for info, done in zip(infos, dones, strict=True) if done):
            seen += [info["terminal_observation"], info["episode"]["r"], info["episode"]["l"], info["is_success"]]
    return seen


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype


def test_the_largest_seed() -> None:
    """Those that are derived from it begin again at 0, since many simulators take no larger ones."""
    env = make_troubled_env(n_workers=0)
    assert env.seed(2**32 - 1) == [2**32 - 1, 0, 1]
    env.close()
    env = make_troubled_env(n_envs=1, n_workers=0)
    env.seed(2**32 - 1)
    env.reset()
    seeds = [env.reset_infos[0]["seed"]]
    for _ in range(3 * HORIZON):
        if env.step(np.zeros((1, 2), np.float32))[2][0]:
            seeds.append(env.reset_infos[0]["seed"])
    env.close()
    assert seeds == [2**32 - 1, 1, 2, None]


# ------------------------------------------------------------- trajectories


def test_trajectories_do_not_depend_on_the_workers() -> None:
    reference = DummyVecEnv([partial(make_task, task, M) for task in range(M) for _ in range(2)])
    expected = rollout(reference, 70)
    for n_workers in (0, 1, 2, 3):
        env = make_env(envs_per_task=2, n_workers=n_workers)
        assert_same(rollout(env, 70), expected)
        env.close()


def test_rotating_trajectories_do_not_depend_on_the_workers() -> None:
    expected = None
    for n_workers in (0, 1, 2):
        env = make_env(num_tasks=5, n_envs=2, n_workers=n_workers)
        seen = rollout(env, 150)
        expected = expected or seen
        assert_same(seen, expected)
        env.close()


def test_envs_step_while_the_caller_works() -> None:
    env = make_troubled_env(n_workers=1)
    env.reset()
    env.step_async(np.zeros((M, 2)))
    with pytest.raises(SoftModError, match="step_async was called twice"):
        env.step_async(np.zeros((M, 2)))
    assert env.get_attr("task_name") == NAMES  # in between, and the step is not lost
    assert np.asarray(env.step_wait()[0]).shape == (M, 2 + M)
    with pytest.raises(SoftModError, match="step_wait was called before step_async"):
        env.step_wait()
    env.step_async(np.zeros((M, 2)))
    first = env.reset()  # drops the step
    assert np.abs(env.step(np.zeros((M, 2)))[0] - first).max() == 0
    env.close()


def test_results_stay_as_they_were_returned() -> None:
    env = make_env(n_workers=1)
    first = env.reset()
    kept = first.copy()
    env.step(np.ones((M, 2)))
    np.testing.assert_array_equal(first, kept)
    env.close()


# ---------------------------------------------------------------- rotation


@pytest.mark.parametrize(("num_tasks", "n_envs"), [(6, 2), (5, 2), (5, 4), (4, 1), (4, 4)])
def test_tasks_take_turns(num_tasks: int, n_envs: int) -> None:
    env = make_env(num_tasks, horizon=3, n_envs=n_envs, n_workers=0)
    episodes = np.zeros(num_tasks, int)
    ids = env.task_ids
    obs = env.reset()
    for step in range(1, 61):
        np.testing.assert_array_equal(obs[:, 2:].argmax(1), env.task_ids)
        assert env.get_attr("task_id") == env.task_ids.tolist()
        obs, _, dones, infos = env.step(np.zeros((n_envs, 2)))  # type: ignore[assignment]
        assert [info["task_id"] for info in infos] == ids.tolist()  # of the episode that the step belonged to
        if dones.any():
            assert step % 3 == 0
            np.add.at(episodes, ids, 1)
            assert episodes.max() - episodes.min() <= 1
        ids = env.task_ids
    assert [row["episodes"] for row in env.episode_table()] == episodes.tolist()
    env.close()


def test_tasks_of_different_lengths_begin_equally_often() -> None:
    makers = [partial(make_copy, task, num_tasks=5, horizon=2 + 3 * task) for task in range(5)]
    env = MultiTaskVecEnv(makers, n_envs=3, n_workers=2)
    begun = np.bincount(env.task_ids, minlength=5)
    env.reset()
    for _ in range(100):
        dones = env.step(np.zeros((3, 2)))[2]
        np.add.at(begun, env.task_ids[dones], 1)
        assert begun.max() - begun.min() <= 1
    env.close()


def test_envs_are_built_when_needed(tmp_path: Path) -> None:
    def make(task: int, copy: int) -> TaskEnv:
        (tmp_path / f"{task}-{copy}").touch()
        return make_task(task, 4, 2)

    env = MultiTaskVecEnv([partial(make, task) for task in range(4)], n_envs=2, n_workers=1)
    env.reset()
    assert {path.name for path in tmp_path.iterdir()} == {"0-0", "1-1"}
    for _ in range(10):
        env.step(np.zeros((2, 2)))
    assert {path.name for path in tmp_path.iterdir()} == {"0-0", "1-1", "2-0", "3-1"}
    env.close()


# ------------------------------------------------------------- the contract


@pytest.mark.parametrize("n_workers", [0, 2])
def test_attributes_and_methods(n_workers: int) -> None:
    env = make_troubled_env(envs_per_task=2, n_workers=n_workers)
    assert (env.num_envs, env.num_tasks, env.task_names) == (6, M, NAMES)
    assert env.task_ids.tolist() == env.get_attr("task_id") == [0, 0, 1, 1, 2, 2]
    assert env.get_attr("num_tasks", [0, 5]) == [M, M]
    assert env.get_attr("action_space", 1) == [env.action_space]
    assert env.get_attr("task_name", [4, 1, -1]) == ["corner-2", "corner-0", "corner-2"]
    assert env.render_mode is None
    assert env.has_attr("goal")
    assert not env.has_attr("gaol")
    with pytest.raises(AttributeError, match=r"Env 2 \(task 'corner-1'\) has no attribute 'gaol'"):
        env.get_attr("gaol", 2)
    env.set_attr("speed", 7, [1, 2])
    assert env.get_attr("speed", [1, 2]) == [7, 7]
    assert not env.has_attr("speed")
    assert env.env_is_wrapped(TaskEnv) == [True] * 6
    assert env.env_is_wrapped(Monitor, [3]) == [False]
    assert len(set(env.env_method("pid"))) == max(n_workers, 1)
    assert (os.getpid() in env.env_method("pid")) == (n_workers == 0)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.get_images() == [None] * 6
    env.close()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_seeds_and_options_are_used_once(n_workers: int) -> None:
    env = make_troubled_env(n_workers=n_workers)
    env.seed(10)
    env.set_options({"goal": 1})
    first = env.reset()
    assert env.env_method("options") == [(10, {"goal": 1}), (11, {"goal": 1}), (12, {"goal": 1})]
    assert [info["seed"] for info in env.reset_infos] == [10, 11, 12]
    assert not np.array_equal(env.reset(), first)
    assert env.env_method("options") == [(None, None)] * M
    env.seed(10)
    np.testing.assert_array_equal(env.reset(), first)
    env.close()


def test_seeds_reach_the_tasks_that_come_later() -> None:
    env = MultiTaskVecEnv([partial(make_troubled, task) for task in range(M)], n_envs=1, n_workers=0)
    env.seed(10)
    env.reset()
    seeds = []
    for _ in range(HORIZON * 2 * M):
        if env.step(np.zeros((1, 2)))[2][0]:
            seeds.append(env.reset_infos[0]["seed"])
    assert len(set(seeds[: M - 1])) == M - 1
    assert None not in seeds[: M - 1]
    assert seeds[M - 1 :] == [None] * (M + 1)


def test_episode_table() -> None:
    env = make_env(horizon=4, n_workers=1)
    env.reset()
    rewards = [env.step(np.zeros((M, 2)))[1] for _ in range(12)]
    table = env.episode_table(last=2)
    assert [row["task"] for row in table] == NAMES
    assert [row["episodes"] for row in table] == [2] * M
    np.testing.assert_allclose([row["return"] for row in table], np.sum(rewards[4:], 0) / 2, rtol=1e-6)
    assert table[0]["length"] == 4
    assert table[0]["success_rate"] == table[0]["success_at_end_rate"] == 0
    with pytest.raises(ConfigurationError, match="last must be from 1 to"):
        env.episode_table(0)
    env.close()


def test_under_sb3() -> None:
    env = VecMonitor(make_env(n_workers=1))
    model = SoftModSAC("SoftModPolicy", env, learning_starts=30, batch_size=12, policy_kwargs=dict(embedding_dim=16))
    model.learn(90)
    assert model.task_names == NAMES
    rotating = make_env(n_envs=2, n_workers=1)
    model = SoftModSAC("SoftModPolicy", rotating, learning_starts=90, policy_kwargs=dict(embedding_dim=16))
    model.learn(2 * HORIZON * M)
    assert model.episode_statistics is not None
    assert model.episode_statistics.num_episodes() == [2] * M
    model.set_env(make_env(n_envs=2, n_workers=0))
    rotating.close()
    env.close()


def test_stacked_frames() -> None:
    """Each frame has its task, the last one at the end, where the model looks for it."""
    env = VecFrameStack(make_env(n_envs=2, n_workers=0), n_stack=3)
    assert env.observation_space.shape == (3 * (2 + M),)
    model = SoftModSAC("SoftModPolicy", env, learning_starts=60, batch_size=12, policy_kwargs=dict(embedding_dim=16))
    model.learn(62)
    assert model._n_updates == 1
    assert model.replay_buffer is not None
    last = model.replay_buffer.sample(M).observations.numpy()
    np.testing.assert_array_equal(np.sort(last[:, -M:].argmax(1)), range(M))
    env.close()


def test_workers_load_neither_torch_nor_sb3() -> None:
    code = (
        "import torch, numpy as np\n"
        "from sb3_softmod import make_metaworld_env\n"
        "env = make_metaworld_env(['reach-v3', 'push-v3'], seed=0, n_workers=2)\n"
        "env.reset(); env.step(np.zeros((2, 4)))\n"
        "from stable_baselines3.common.monitor import Monitor\n"
        "env.env_is_wrapped(Monitor)\n"
        "def loaded(env):\n"
        "    import sys\n"
        "    return sorted({'torch', 'stable_baselines3'} & sys.modules.keys())\n"
        "print(env._apply(loaded, None))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["[[],", "[]]"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("actions", r"tasks 'corner-0' and 'corner-1' differ in their action space: Box.*\(2,\).* and Box.*\(5,\)"),
        ("observations", "tasks 'corner-0' and 'corner-1' differ in their observation space"),
        ("no task", "is no task, it lacks .*wrap it in sb3_softmod.TaskEnv"),
        ("ids", "The maker of task 1 made a TaskEnv with task_id 0"),
    ],
)
def test_tasks_that_do_not_fit_together(what: str, message: str, n_workers: int) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MultiTaskVecEnv([partial(make_odd, task, what=what) for task in range(M)], n_workers=n_workers)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_tasks_that_do_not_fit_are_found_late_when_built_late(n_workers: int) -> None:
    env = MultiTaskVecEnv([partial(make_odd, task, what="actions") for task in range(M)], n_envs=1, n_workers=n_workers)
    env.set_attr("step", lambda action: (np.zeros(2 + M), 0.0, True, False, {}))
    env.reset()
    with pytest.raises(ConfigurationError, match="differ in their action space"):
        env.step(np.zeros((1, 2)))


@pytest.mark.parametrize("n_workers", [0, 1])
def test_makers_in_the_wrong_order_are_found_when_built_late(n_workers: int) -> None:
    env = MultiTaskVecEnv([partial(make_copy, task, horizon=1) for task in (0, 2, 1)], n_envs=1, n_workers=n_workers)
    env.reset()
    with pytest.raises(ConfigurationError, match="The maker of task 1 made a TaskEnv with task_id 2 of"):
        env.step(np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(envs_per_task=0), "envs_per_task must be at least 1, not 0"),
        (dict(n_envs=0), "n_envs must be from 1 to the number of tasks, 3, not 0"),
        (dict(n_envs=4), "for more envs use envs_per_task"),
        (dict(n_envs=2, envs_per_task=2), "n_envs must be from 1"),
        (dict(n_workers=-1), "n_workers must be at least 0, not -1"),
    ],
)
def test_impossible_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_env(**options)
    with pytest.raises(ConfigurationError, match="The list of tasks is empty"):
        MultiTaskVecEnv([])


def test_bad_actions() -> None:
    env = make_env(n_workers=0)
    env.reset()
    for actions in (np.zeros((M, 3)), np.zeros(M), np.zeros((M + 1, 2)), np.full((M, 2), "left")):
        with pytest.raises(ConfigurationError, match=r"A step needs actions \(3, 2\) of float32, a row for each env"):
            env.step(actions)
    bad = np.zeros((M, 2))
    bad[1, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"action for env 1 \(task 'corner-1'\) holds NaN or infinity: \[nan"):
        env.step(bad)
    env.step(np.zeros((M, 2)))  # nothing was lost
