"""make_metaworld_env on real Meta-World."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import metaworld
import numpy as np
import pytest
from meta_worlds_own import use_meta_worlds_own
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecEnv, SoftModSAC, make_metaworld_env
from sb3_softmod.envs import metaworld as envs_of_metaworld
from sb3_softmod.envs.metaworld import MetaWorldEnv, draw_goals, resolve_task_names
from sb3_softmod.evaluation import evaluate_tasks

PAIR = ["reach-v3", "button-press-topdown-v3"]


def rollout(env: Any, steps: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    out: list[tuple[np.ndarray, ...]] = []
    for _ in range(steps):
        obs, rewards, dones, infos = env.step(rng.uniform(-1, 1, (env.num_envs, 4)).astype(np.float32))
        ends = np.array([info.get("terminal_observation", now) for info, now in zip(infos, obs, strict=True)])
        success = np.array([info["success"] for info in infos])
        out.append((obs.copy(), rewards.copy(), dones.copy(), success, ends))
    return out


def goal_of(obs: np.ndarray) -> np.ndarray:
    return obs[:, 36:39]


def test_task_sets() -> None:
    assert resolve_task_names("MT10") == tuple(MT10_V3)
    assert len(resolve_task_names("MT25")) == 25
    assert resolve_task_names("MT50") == tuple(ALL_V3_ENVIRONMENTS)
    assert resolve_task_names("reach-v3") == ("reach-v3",)
    assert resolve_task_names(PAIR) == tuple(PAIR)


@pytest.mark.parametrize("name", ["reach-v3", "lever-pull-v3", "pick-place-v3"])
def test_goals_are_those_of_meta_world(name: str) -> None:
    """The fast draw gives the benchmark's goals (the slow test compares all 50 tasks)."""
    ours = draw_goals(ALL_V3_ENVIRONMENTS[name](), name, seed=7)
    theirs = metaworld.MT1(name, seed=7).train_tasks
    assert len(ours) == 50
    for a, b in zip(ours, theirs, strict=True):
        ours_data, theirs_data = pickle.loads(a.data), pickle.loads(b.data)
        np.testing.assert_array_equal(ours_data.pop("rand_vec"), theirs_data.pop("rand_vec"))
        assert ours_data == theirs_data


def test_goals_drawn_in_threads_at_the_same_time() -> None:
    """Nobody draws from, or seeds, the generator that all threads share."""
    seeds = list(range(4))
    expected = [drawn(seed) for seed in seeds]
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(seeds)) as pool:
            found = list(pool.map(drawn, seeds))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def drawn(seed: int) -> list[list[float]]:
    env = ALL_V3_ENVIRONMENTS["reach-v3"]()
    return [pickle.loads(goal.data)["rand_vec"].tolist() for goal in draw_goals(env, "reach-v3", seed)]


def check_a_second_env(name: str) -> None:
    """It has goals that were drawn by another, and plays as that one does, to the bit."""
    first, second = (make_metaworld_env(name, seed=11, max_episode_steps=6, n_workers=0) for _ in range(2))
    for env in (first, second):
        env.seed(2)
    np.testing.assert_array_equal(first.reset(), second.reset())
    for ours, theirs in zip(rollout(first, 13), rollout(second, 13), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_goals_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []

    def draw(env: Any, name: str, seed: int) -> list[Any]:
        drawn.append((name, seed))
        return draw_goals(env, name, seed)

    monkeypatch.setattr(envs_of_metaworld, "draw_goals", draw)
    monkeypatch.setattr(envs_of_metaworld, "_DRAWN", {})
    monkeypatch.setattr(envs_of_metaworld, "_MOST_DRAWN", 2)
    # Among them one whose start depends on where Meta-World's first of two resets puts its bodies.
    for name in ("reach-v3", "lever-pull-v3"):
        check_a_second_env(name)
    assert drawn == [("reach-v3", 11), ("lever-pull-v3", 11)]
    for seed in (12, 13):
        make_metaworld_env("reach-v3", seed=seed, envs_per_task=2, n_workers=0)
    check_a_second_env("reach-v3")  # they are forgotten
    assert drawn[2:] == [("reach-v3", 12), ("reach-v3", 13), ("reach-v3", 11)]


@pytest.mark.slow
def test_all_tasks_play_the_same_with_goals_of_another_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs_of_metaworld, "_DRAWN", {})
    for name in ALL_V3_ENVIRONMENTS:
        check_a_second_env(name)


@pytest.mark.slow
def test_goals_of_all_tasks_are_those_of_meta_world() -> None:
    for name in ALL_V3_ENVIRONMENTS:
        test_goals_are_those_of_meta_world(name)


def check_against_meta_world(
    monkeypatch: pytest.MonkeyPatch, tasks: Sequence[str], horizon: int = 25, episodes: int = 3
) -> None:
    """Step our vector of envs and Meta-World's own, one by one, with the same actions and goals: equal to the bit.

    The first episode is cut off in its middle by a reset.
    """
    env = make_metaworld_env(tasks, seed=3, max_episode_steps=horizon)
    lengths = [horizon // 2] + [horizon] * (episodes - 1)
    ours: list[list[tuple[np.ndarray, ...]]] = []
    starts = []
    for length in lengths:
        starts.append(np.asarray(env.reset()))
        ours.append(rollout(env, length, seed=length))
    last_infos = env.step(np.zeros((len(tasks), 4)))[3]
    env.close()
    assert not any("terminal_observation" in info for info in last_infos)  # an episode has just begun
    use_meta_worlds_own(monkeypatch)
    for i, name in enumerate(tasks):
        benchmark = metaworld.MT1(name, seed=3)
        theirs = benchmark.train_classes[name]()
        order = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(i, 0)))
        for episode, length in enumerate(lengths):
            theirs.set_task(benchmark.train_tasks[order.integers(50)])
            obs, _ = theirs.reset()
            np.testing.assert_array_equal(starts[episode][i, :39], obs.astype(np.float32), err_msg=name)
            rng = np.random.default_rng(length)
            for step, (seen, reward, done, success, ends) in enumerate(ours[episode]):
                action = rng.uniform(-1, 1, (len(tasks), 4)).astype(np.float32)[i]
                obs, expected_reward, _, _, info = theirs.step(action)
                assert done[i] == (step == horizon - 1)
                last = ends[i] if done[i] else seen[i]  # the VecEnv has begun the next episode already
                np.testing.assert_array_equal(last[:39], obs.astype(np.float32), err_msg=name)
                assert reward[i] == np.float32(expected_reward), name
                assert success[i] == info["success"], name
            if length == horizon:  # that next episode, which our explicit reset cut off, took a goal
                order.integers(50)


def test_trajectories_equal_meta_world_stepped_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them tasks whose start depends on where Meta-World's first of two resets put their bodies."""
    check_against_meta_world(monkeypatch, [*PAIR, "window-open-v3", "door-lock-v3", "lever-pull-v3"])


@pytest.mark.slow
def test_trajectories_of_all_tasks_equal_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    check_against_meta_world(monkeypatch, resolve_task_names("MT50"))


def test_observations_and_infos() -> None:
    env = make_metaworld_env(PAIR, seed=0, max_episode_steps=5)
    assert env.observation_space.shape == (41,)
    assert env.get_attr("num_tasks") == [2, 2]
    obs = np.asarray(env.reset())
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs[:, 39:], np.eye(2))
    for step in range(5):
        obs, _, dones, infos = env.step(np.zeros((2, 4)))  # type: ignore[assignment]
        assert [info["task_name"] for info in infos] == PAIR
        assert dones.tolist() == [step == 4] * 2
    for task, info in enumerate(infos):
        assert info["TimeLimit.truncated"]
        assert info["episode"]["l"] == 5
        assert {"is_success", "is_success_at_end", "terminal_observation"} <= info.keys()
        assert info["terminal_observation"][39 + task] == 1


def test_random_goals_change_and_never_coincide() -> None:
    env = make_metaworld_env(["reach-v3", "push-v3"], seed=0, envs_per_task=2, max_episode_steps=1)
    goals = []
    for _ in range(12):
        goals.append(goal_of(np.asarray(env.reset())).round(6))
    sequences = [[tuple(goal[i]) for goal in goals] for i in range(4)]
    assert all(len(set(sequence)) > 6 for sequence in sequences)
    assert sequences[0] != sequences[1]  # copies of a task
    assert sequences[2] != sequences[3]


def test_fixed_goals_never_change_and_random_ones_are_of_the_fifty() -> None:
    fixed = make_metaworld_env("reach-v3", goals="fixed", seed=0)
    assert len({tuple(goal_of(np.asarray(fixed.reset()))[0]) for _ in range(6)}) == 1
    seen = {tuple(goal_of(np.asarray(fixed.reset()))[0])}
    random = make_metaworld_env("reach-v3", seed=0)
    for _ in range(400):
        seen.add(tuple(goal_of(np.asarray(random.reset()))[0]))
    assert len(seen) == 50


def goals_of(env: MultiTaskVecEnv, resets: int) -> list[list[tuple[float, ...]]]:
    """The goals of each env over some resets."""
    goals = np.array([goal_of(env.reset()) for _ in range(resets)])
    return [[tuple(goal) for goal in goals[:, index]] for index in range(env.num_envs)]


def test_each_goal_once() -> None:
    def run(seed: int | None, task: str = "reach-v3") -> list[tuple[float, ...]]:
        return goals_of(make_metaworld_env(task, goals="each-once", seed=seed, n_workers=0), 100)[0]

    first = run(0)
    assert len(set(first[:50])) == 50
    assert first[50:] == first[:50]
    drawn = {
        tuple(np.asarray(pickle.loads(goal.data)["rand_vec"][3:], np.float32).tolist())
        for goal in draw_reach_goals(seed=0)
    }
    assert set(first) == drawn
    assert run(0) == first
    assert not set(run(1)) & set(first)
    assert not set(run(None)) & set(run(None))


def draw_reach_goals(seed: int) -> list[Any]:
    return draw_goals(ALL_V3_ENVIRONMENTS["reach-v3"](), "reach-v3", seed)


def test_copies_share_the_goals() -> None:
    """Three copies: 17, 17 and 16 goals, each then begins its own again; a seeded reset, too, begins at its first."""
    env = make_metaworld_env("reach-v3", goals="each-once", seed=0, envs_per_task=3, n_workers=0)
    goals = goals_of(env, 34)
    shares = [goals[0][:17], goals[1][:17], goals[2][:16]]
    assert len({goal for share in shares for goal in share}) == 50
    for copy, share in zip(goals, shares, strict=True):
        assert copy[len(share) :] == (share * 2)[: 34 - len(share)]
    env.seed(99)
    assert [goal[0] for goal in goals_of(env, 1)] == [goal[0] for goal in goals]
    one = make_metaworld_env("reach-v3", goals="each-once", seed=0, n_workers=0)
    assert [goal for turn in itertools.zip_longest(*shares) for goal in turn if goal] == goals_of(one, 50)[0]


def test_evaluation_meets_each_goal_once() -> None:
    class Watcher:
        goals: list[list[tuple[float, ...]]]

        def predict(self, observation: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
            self.goals += [[tuple(goal) for goal in goal_of(observation)]]
            return np.zeros((len(observation), 4)), None

    env = make_metaworld_env("reach-v3", goals="each-once", seed=0, envs_per_task=3, max_episode_steps=1)
    watcher = Watcher()
    for _ in range(2):
        watcher.goals = []
        assert evaluate_tasks(watcher, env, n_eval_episodes=50).episodes == [50]
        assert len(watcher.goals) == 17
        counted = [goal for step in watcher.goals[:16] for goal in step] + watcher.goals[16][:2]
        assert len(set(counted)) == 50
    env.close()


def test_tasks_have_orders_of_their_own() -> None:
    env = make_metaworld_env(PAIR, goals="each-once", seed=0, n_workers=0, max_episode_steps=1, n_envs=1)
    seen: list[list[tuple[float, ...]]] = [[], []]
    obs = env.reset()
    for _ in range(100):  # the tasks take turns in one env
        seen[env.task_ids[0]].append(tuple(goal_of(obs)[0]))
        obs = env.step(np.zeros((1, 4)))[0]  # type: ignore[assignment]
    assert [len(set(goals)) for goals in seen] == [50, 50]
    orders = [MetaWorldEnv("reach-v3", goals="each-once", seed=0, task_id=task) for task in range(2)]
    first, second = ([tuple(env.reset()[0][36:]) for _ in range(50)] for env in orders)
    assert set(first) == set(second)
    assert first != second


def test_terminate_on_success() -> None:
    """Meta-World's own expert solves reach; the episode then ends at once."""
    from metaworld.policies import ENV_POLICY_MAP

    expert: Any = ENV_POLICY_MAP["reach-v3"]()  # type: ignore[abstract]
    env = make_metaworld_env("reach-v3", seed=0, terminate_on_success=True)
    obs = np.asarray(env.reset())
    for _ in range(200):
        obs, _, dones, infos = env.step(np.array([expert.get_action(obs[0, :39].astype(float))]))  # type: ignore[assignment]
        if dones[0]:
            break
    assert infos[0]["episode"]["l"] < 150
    assert infos[0]["is_success"]
    assert infos[0]["is_success_at_end"]
    assert not infos[0]["TimeLimit.truncated"]


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ("MT11", {}, r"Unknown task or task set 'MT11': did you mean 'MT10'"),
        ("reach", {}, r"Unknown task or task set 'reach': did you mean 'reach-v3'"),
        (["reach-v3", "pusch-v3"], {}, r"Unknown task 'pusch-v3': did you mean 'push-v3'"),
        ([], {}, "The list of tasks is empty"),
        (["reach-v3", "reach-v3"], {}, "'reach-v3' is listed 2 times"),
        ("reach-v3", dict(goals="randomly"), "Unknown goals 'randomly': did you mean 'random'"),
        ("reach-v3", dict(reward_version="v3"), "Unknown reward_version 'v3'"),
        ("reach-v3", dict(max_episode_steps=501), "max_episode_steps must be from 1 to 500, not 501"),
        ("reach-v3", dict(envs_per_task=0), "envs_per_task must be at least 1"),
        ("reach-v3", dict(camera_name="corner7"), "Unknown camera_name 'corner7': did you mean 'corner'"),
        ("reach-v3", dict(goals="each-once", envs_per_task=51), "envs_per_task must be at most 50 with goals"),
        ("MT3", dict(goals="each-once", n_envs=2), "an n_envs that divides the number of tasks, 3"),
        (PAIR, dict(goals="each-once", n_envs=1, terminate_on_success=True), "and no terminate_on_success"),
    ],
)
def test_bad_input_is_refused(tasks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_metaworld_env(tasks, **options)


@pytest.mark.parametrize("variant", ["paper", pytest.param("official", marks=pytest.mark.slow)])
def test_training_by_name(variant: str, tmp_path: Any) -> None:
    """The whole path on real tasks: MT10 by name, a few gradient steps, save, load, act."""
    model = SoftModSAC(
        "SoftModPolicy",
        "MT10",
        batch_size=40,
        learning_starts=100,
        buffer_size=10_000,
        policy_kwargs=dict(preset="deep", variant=variant, embedding_dim=32, module_dim=16),
        seed=0,
    )
    model.learn(300)
    assert model._n_updates == 20
    assert all(p.isfinite().all() for p in model.policy.parameters())
    model.save(tmp_path / "mt10")
    loaded = SoftModSAC.load(tmp_path / "mt10", env="MT10")
    obs = np.asarray(loaded.get_env().reset())  # type: ignore[union-attr]
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert loaded.task_names == list(MT10_V3)


def test_another_env_by_name() -> None:
    model = MultiTaskSAC(
        "MTMlpPolicy", make_metaworld_env("reach-v3", n_workers=0), buffer_size=50, device="cpu", seed=5
    )
    model.set_env("reach-v3")
    env: Any = model.get_env()
    expected = make_metaworld_env("reach-v3", seed=5, n_workers=0).reset()
    np.testing.assert_array_equal(env.reset(), expected)
    with pytest.raises(ConfigurationError, match="The model has 1 tasks, but the env 2"):
        model.set_env(make_metaworld_env(["reach-v3", "push-v3"], n_workers=0))
    with pytest.raises(ConfigurationError, match="did you mean 'reach-v3'"):
        model.set_env("reach-v9")
    env.close()
