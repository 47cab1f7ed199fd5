"""progress() and set_progress(): envs that go on, in another process, exactly as if nothing had happened."""

from __future__ import annotations

import io
import os
import pickle
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from point_mass import HORIZON, make_point_mass_env
from stable_baselines3.common.vec_env import VecMonitor
from worker_envs import M, make_copy, make_restless, make_secretive, make_troubled_env

from sb3_softmod import (
    ConfigurationError,
    MultiTaskVecEnv,
    MultiTaskVecNormalize,
    SoftModError,
    make_dm_control_env,
    make_metaworld_env,
    make_multitask_env,
)
from sb3_softmod.envs import progress as progress_module
from sb3_softmod.envs.metaworld import MetaWorldEnv
from sb3_softmod.envs.progress import progress_of, set_progress_of

PAIR = ["reach-v3", "button-press-topdown-v3"]


def at_random(obs: np.ndarray, rng: np.random.Generator, width: int = 2) -> np.ndarray:
    return rng.uniform(-1, 1, (len(obs), width)).astype(np.float32)


def play(env: Any, obs: np.ndarray, steps: int, seed: int, policy: Any = at_random) -> list[Any]:
    """All that the envs say in some steps, but for times."""
    rng = np.random.default_rng(seed)
    seen: list[Any] = []
    for _ in range(steps):
        obs, rewards, dones, infos = env.step(policy(obs, rng))
        for info in infos:
            info.get("episode", {}).pop("t", None)
        seen.append((obs.copy(), rewards, dones, infos, env.get_attr("task_id")))
    return seen


def check(
    make: Callable[[int], Any], moments: list[int], then: int, policy: Any = at_random, seed: int | None = None
) -> list[list[Any]]:
    """Stop at some moments and go on with new envs for some steps: all is as it was without the stop.

    :param make: the envs, with a number of workers
    :return: what the envs said after each moment
    """
    env = make(0)
    if seed is not None:
        env.seed(seed)
    obs, now, saved = env.reset(), 0, []
    for moment in moments:
        obs = [obs, *(step[0] for step in play(env, obs, moment - now, moment, policy))][-1]
        stop = pickle.dumps(progress_of(env)), obs.copy(), env.get_attr("task_id"), env.unwrapped.reset_infos[:]
        expected = play(env, obs, then, 0, policy)
        saved.append((*stop, expected, env.unwrapped.episode_table(1000)))
        obs, now = expected[-1][0], moment + then
    env.close()
    for number, (progress, last, tasks, reset_infos, expected, table) in enumerate(saved):
        env = make(0 if number else 2)
        obs, strayed = set_progress_of(env, pickle.loads(progress))
        assert not strayed.any()
        assert obs.tobytes() == last.tobytes()
        assert env.get_attr("task_id") == tasks
        assert env.unwrapped.reset_infos == reset_infos
        seen = play(env, obs, then, 0, policy)
        np.testing.assert_equal(seen, expected)
        assert [step[0].tobytes() for step in seen] == [step[0].tobytes() for step in expected]
        np.testing.assert_equal(env.unwrapped.episode_table(1000), table)
        env.close()
    return [expected for *_, expected, _ in saved]


def make_env(n_workers: int, maker: Any = make_restless, num_tasks: int = 5, **kwargs: Any) -> MultiTaskVecEnv:
    makers = [partial(maker, task, num_tasks=num_tasks) for task in range(num_tasks)]
    return MultiTaskVecEnv(makers, n_workers=n_workers, **kwargs)


# ------------------------------------------------------------------ exactly


@pytest.mark.parametrize(
    ("options", "seed"),
    [(dict(), None), (dict(envs_per_task=2), None), (dict(), 7), (dict(n_envs=3), 7), (dict(n_envs=1), 8)],
)
def test_any_moment(options: dict[str, Any], seed: int | None) -> None:
    """Restless envs in changing weather: the generators of env and wrapper, and a count of episodes, go on."""
    gaps = np.random.default_rng(3).integers(0, 25, 6)
    moments = [0, *(int(moment) for moment in np.cumsum(gaps + 31))]
    after = check(partial(make_env, **options), moments, then=30, seed=seed)
    assert all(sum(step[2].sum() for step in steps) >= 1 for steps in after)


def test_going_on_twice() -> None:
    env = make_env(0, n_envs=2)
    env.seed(0)
    obs = play(env, env.reset(), 17, seed=0)[-1][0]
    progress = env.progress()
    obs = play(env, obs, 25, seed=1)[-1][0]
    expected = play(env, obs, 35, seed=2)
    env = make_env(0, n_envs=2)
    obs, _ = env.set_progress(progress)
    obs = play(env, obs, 25, seed=1)[-1][0]
    progress = env.progress()
    env = make_env(0, n_envs=2)
    obs, _ = env.set_progress(progress)
    np.testing.assert_equal(play(env, obs, 35, seed=2), expected)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_back_to_where_the_same_envs_were(n_workers: int) -> None:
    """Tasks that they played since then begin once more as if for the first time."""
    env = make_env(n_workers, n_envs=2)
    env.seed(0)
    obs = play(env, env.reset(), 5, seed=0)[-1][0]
    progress = env.progress()
    expected = play(env, obs, 60, seed=1)
    assert {task for step in expected for task in step[4]} == set(range(5))
    obs, strayed = env.set_progress(progress)
    assert not strayed.any()
    np.testing.assert_equal(play(env, obs, 60, seed=1), expected)
    env.close()


@pytest.mark.parametrize("n_envs", [None, 1])
def test_gymnasium_envs_without_a_seed(n_envs: int | None) -> None:
    """The tasks that were not played before the stop get the seeds that they would have got, too."""
    make = partial(make_multitask_env, {"a": "Pendulum-v1", "b": "Pendulum-v1"}, max_episode_steps=20, n_envs=n_envs)
    check(lambda n_workers: make(n_workers=n_workers), [0, 50], then=30, policy=partial(at_random, width=1))


def test_dm_control() -> None:
    pytest.importorskip("shimmy")
    pytest.importorskip("dm_control")
    make = partial(make_dm_control_env, ["cartpole-balance", "cartpole-swingup"], max_episode_steps=12)
    check(lambda n_workers: make(n_workers=n_workers), [20], then=20, policy=partial(at_random, width=1))


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (["reach-v3", "lever-pull-v3"], dict(goals="random", envs_per_task=2)),
        (PAIR, dict(goals="each-once", envs_per_task=2)),
        (["push-v3", "door-lock-v3"], dict(goals="fixed", seed=3)),
        ([*PAIR, "window-open-v3"], dict(goals="random", n_envs=2)),
    ],
)
def test_meta_world(tasks: list[str], options: dict[str, Any]) -> None:
    """Without a seed too: the new envs take over the goals of the old ones."""
    make = partial(make_metaworld_env, tasks, max_episode_steps=14, **options)
    check(lambda n_workers: make(n_workers=n_workers), [5, 40], then=25, policy=partial(at_random, width=4))


def test_meta_world_that_terminates_on_success() -> None:
    """Its own expert acts, so that episodes have lengths of their own."""
    from metaworld.policies import ENV_POLICY_MAP

    expert: Any = ENV_POLICY_MAP["reach-v3"]()  # type: ignore[abstract]

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.array([expert.get_action(row[:39].astype(float)) for row in obs]).clip(-1, 1).astype(np.float32)

    make = partial(make_metaworld_env, "reach-v3", seed=1, terminate_on_success=True)
    (steps,) = check(lambda n_workers: make(n_workers=n_workers), [30], then=80, policy=act)
    infos = [step[3][0] for step in steps if step[2][0]]
    assert infos
    assert all(info["is_success"] for info in infos)


def test_meta_world_leaves_the_global_generator_alone() -> None:
    """Which is the learner's own without worker processes; so its state need not be kept."""
    env = MetaWorldEnv("reach-v3", seed=0)
    before = np.random.get_state(legacy=False)
    env.reset()
    for _ in range(5):
        env.step(np.ones(4, np.float32))
    np.testing.assert_equal(np.random.get_state(legacy=False), before)


def test_pending_seeds_and_options() -> None:
    env = make_troubled_env(n_workers=0)
    env.reset()
    env.seed(4)
    env.set_options({"goal": 1})
    progress = env.progress()
    env = make_troubled_env(n_workers=0)
    env.seed(9)
    env.set_progress(progress)
    env.reset()
    assert env.env_method("options") == [(4 + index, {"goal": 1}) for index in range(M)]


def test_it_is_small_and_plain() -> None:
    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            assert module.partition(".")[0] in ("numpy", "builtins", "_codecs"), (module, name)
            return super().find_class(module, name)

    env = make_env(0)
    obs = env.reset()
    last = env.progress()["last"].copy()
    env.progress()["last"][...] = 0  # a copy
    np.testing.assert_array_equal(env.progress()["last"], last)
    assert last["observation"].any()
    play(env, obs, 400, seed=0)
    data = pickle.dumps(env.progress())
    assert len(data) < 30_000
    assert Plain(io.BytesIO(data)).load()["task_names"] == env.task_names


# ------------------------------------------------------- at an episode boundary


@pytest.mark.parametrize("n_workers", [0, 2])
def test_hidden_randomness(n_workers: int) -> None:
    """The env that has it begins another episode, and says so; the others go on exactly."""
    env = make_env(0, make_secretive, M)
    env.seed(0)
    obs = play(env, env.reset(), 11, seed=2)[-1][0]
    progress, lengths = env.progress(), np.array(env.progress()["lengths"])
    expected = play(env, obs, 30, seed=0)
    assert lengths[1] > 0
    env = make_env(n_workers, make_secretive, M)
    with pytest.warns(UserWarning, match=r"went another way.*: env 1 \(task 'corner-1'\)\. They begin their next"):
        now, strayed = env.set_progress(progress)
    assert strayed.tolist() == [False, True, False]
    np.testing.assert_array_equal(now[[0, 2]], obs[[0, 2]])
    assert not np.array_equal(now[1], obs[1])
    seen = play(env, now, 30, seed=0)
    for step, wanted in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(step[0][[0, 2]], wanted[0][[0, 2]])
    ends = [number for number, step in enumerate(seen, 1) if step[2][1]]
    assert seen[ends[0] - 1][3][1]["episode"]["l"] == ends[0]  # it began when the envs went on
    env.close()


def test_very_long_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "LONGEST_REPLAY", 8)
    env = make_env(0, make_copy, M)
    env.seed(1)
    env.reset()
    play(env, env.reset(), 8, seed=0)
    exact = env.progress()
    play(env, env.reset(), 9, seed=0)
    progress = env.progress()
    expected = env.reset()
    env = make_env(0, make_copy, M)
    assert not env.set_progress(exact)[1].any()
    with pytest.warns(UserWarning, match="had more than 8 steps: env 0 .*, env 1 .*, env 2 "):
        obs, strayed = env.set_progress(progress)
    assert strayed.all()
    np.testing.assert_array_equal(obs, expected)  # the next episodes
    assert len(play(env, obs, HORIZON, seed=0)) == HORIZON
    assert [row["length"] for row in env.episode_table()] == [HORIZON] * M


def test_a_time_limit_by_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """RL Zoo puts its own class in the place of gymnasium's, but not in the processes that step the envs."""

    class PatchedTimeLimit(gym.wrappers.TimeLimit):
        pass

    with monkeypatch.context() as patch:
        patch.setattr(gym.wrappers, "TimeLimit", PatchedTimeLimit)
        patched = make_env(0)
    assert patched.env_is_wrapped(PatchedTimeLimit) == [True] * 5
    plain = make_env(0)
    for env, other in ((patched, plain), (plain, patched)):
        env.reset()
        _, strayed = other.set_progress(env.progress())
        assert not strayed.any()


# ----------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(num_tasks=4), r"the list of tasks is \['corner-0', .*\] there and \['corner-0', .*'corner-3'\] here"),
        (dict(envs_per_task=2), "the number of envs is 5 there and 10 here"),
        (dict(n_envs=2), "the number of envs is 5 there and 2 here"),
        (dict(maker=make_copy), "wrappers of 'corner-0' is 'TaskEnv of Weather of TimeLimit of Restless' there and"),
    ],
)
def test_progress_of_other_envs(other: dict[str, Any], message: str) -> None:
    env = make_env(0)
    env.reset()
    progress = env.progress()
    untouched, refusing = make_env(0, **other), make_env(0, **other)
    for each in (untouched, refusing):
        each.seed(3)
    obs = untouched.reset()
    np.testing.assert_array_equal(obs, refusing.reset())
    with pytest.raises(ConfigurationError, match=message):
        refusing.set_progress(progress)
    np.testing.assert_equal(play(refusing, obs, 30, 0), play(untouched, obs, 30, 0))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(goals="fixed"), "goals of 'reach-v3' is 'random' there and 'fixed' here"),
        (dict(max_episode_steps=20), "max_episode_steps of 'reach-v3' is 10 there and 20 here"),
        (dict(reward_version="v1"), "reward_version of 'reach-v3' is 'v2' there and 'v1' here"),
        (dict(terminate_on_success=True), "terminate_on_success of 'reach-v3' is False there and True here"),
    ],
)
def test_progress_of_another_meta_world(option: dict[str, Any], message: str, reach: dict[str, Any]) -> None:
    env = make_metaworld_env("reach-v3", **{**dict(max_episode_steps=10, n_workers=0), **option})
    with pytest.raises(ConfigurationError, match=message):
        env.set_progress(reach)


@pytest.fixture(scope="module")
def reach() -> dict[str, Any]:
    env = make_metaworld_env("reach-v3", max_episode_steps=10, n_workers=0)
    env.reset()
    return env.progress()


def test_no_progress() -> None:
    env = make_env(0)
    with pytest.raises(SoftModError, match="no progress before the first reset"):
        env.progress()
    env.reset()
    env.step_async(np.zeros((5, 2)))
    with pytest.raises(SoftModError, match="nor while they step"):
        env.progress()
    env.step_wait()
    with pytest.raises(ConfigurationError, match="This is no progress of a MultiTaskVecEnv"):
        env.set_progress({"returns": 3})
    env.close()
    with pytest.raises(SoftModError, match="This env is closed"):
        env.progress()


# ----------------------------------------------------- wrappers and restarts


@pytest.mark.parametrize("obs_statistics", ["pooled", "per-task"])
def test_normalised(obs_statistics: Any) -> None:
    def make(n_workers: int) -> MultiTaskVecNormalize:
        return MultiTaskVecNormalize(make_env(n_workers, n_envs=3), obs_statistics, gamma=0.9)

    check(make, [13, 60], then=30, seed=1)
    env = make(0)
    env.reset()
    with pytest.raises(ConfigurationError, match="The progress is of envs without MultiTaskVecNormalize"):
        env.set_progress(env.venv.progress())  # type: ignore[attr-defined]


def test_normalised_with_hidden_randomness() -> None:
    env = MultiTaskVecNormalize(make_env(0, make_secretive, M))
    env.seed(0)
    play(env, env.reset(), 11, seed=2)
    progress = env.progress()
    returns = env.returns.copy()
    raw = np.asarray(env.get_original_obs())
    env = MultiTaskVecNormalize(make_env(0, make_secretive, M))
    with pytest.warns(UserWarning, match="went another way"):
        obs, strayed = env.set_progress(progress)
    assert strayed[1]
    np.testing.assert_array_equal(env.returns, np.where(strayed, 0, returns))
    np.testing.assert_array_equal(np.asarray(env.get_original_obs())[~strayed], raw[~strayed])
    np.testing.assert_array_equal(env.normalize_obs(env.get_original_obs()), obs)


def test_wrappers_that_cannot_tell() -> None:
    monitored = VecMonitor(make_env(0))
    monitored.reset()
    for env, name in ((monitored, "VecMonitor"), (MultiTaskVecNormalize(monitored), "VecMonitor")):
        with pytest.raises(ConfigurationError, match=f"{name} cannot tell how far it is.*leave it out"):
            progress_of(env)
    with pytest.raises(ConfigurationError, match="DummyVecEnv cannot tell"):
        set_progress_of(make_point_mass_env(), {})


@pytest.mark.parametrize("n_envs", [None, 2])
def test_restarted_workers_go_on(n_envs: int | None) -> None:
    """The starts of the episodes after one that was lost with its worker are those that would have come."""

    def starts(kill: bool) -> dict[int, list[bytes]]:
        env = make_troubled_env(n_envs=n_envs, n_workers=1, restart_failed=True)
        env.seed(0)
        found: dict[int, list[bytes]] = {task: [] for task in range(M)}
        for obs, task in zip(env.reset(), env.task_ids, strict=True):
            found[task].append(obs.tobytes())
        for step in range(HORIZON * 6 + 3):
            if kill and step == HORIZON + 3:
                os.kill(env.env_method("pid")[0], signal.SIGKILL)
            obs, _, dones, _ = env.step(np.zeros((env.num_envs, 2)))
            assert isinstance(obs, np.ndarray)
            for index in np.flatnonzero(dones).tolist():
                found[env.task_ids[index]].append(obs[index].tobytes())
        env.close()
        return found

    whole = starts(kill=False)
    with pytest.warns(UserWarning, match="anew"):
        cut = starts(kill=True)
    if n_envs is None:
        assert cut == whole
    else:  # copies meet the tasks in another order, but no start comes twice
        assert all(len(set(cut[task])) == len(cut[task]) for task in range(M))
        assert all(len(set(cut[task]) & set(whole[task])) >= 3 for task in range(M))
