"""Rewards that are divided by the largest return of their task: the returns, and what is learned with them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import accelerated_models
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from point_mass import PointMass, make_point_mass_env
from resumable_run import logged
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worker_envs import M, make_restless

from sb3_softmod import ConfigurationError, FileError, MultiTaskSAC, MultiTaskVecEnv, MultiTaskVecNormalize, TaskEnv
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.learner import reward_scale
from sb3_softmod.learner.reward_scale import RewardScale

CPU = th.device("cpu")
ON: dict[str, Any] = dict(reward_scaling="per-task")


def play(scale: RewardScale, task: int, rewards: list[float], end: str = "truncated") -> None:
    """One episode of one env, or the beginning of one."""
    for step, reward in enumerate(rewards, 1):
        last = step == len(rewards)
        ends = [np.array([last and end == kind]) for kind in ("terminated", "truncated")]
        scale.add(np.array([task]), np.array([reward]), *ends)


# ------------------------------------------------------------------------------------ returns of known episodes


@pytest.mark.parametrize(
    ("rewards", "end", "largest"),
    [
        ([1.0, 2.0, 3.0], "terminated", 3.5),  # G = 2.75, 3.5, 3
        ([1.0, 2.0, 3.0], "truncated", 5.0),  # goes on with 2 / 0.5 = 4: G = 3.25, 4.5, 5
        ([-1.0, -2.0, -3.0], "truncated", 5.0),
        ([4.0, -6.0], "terminated", 6.0),  # G = 1, -6
        ([4.0, -6.0], "truncated", 7.0),  # goes on with -1 / 0.5: G = 0.5, -7, whose magnitude counts
        ([0.0, 0.0], "truncated", 0.0),
        ([3.0], "none", 6.0),  # as though truncated now: 3 + 0.5 * 6
        ([3.0, 0.0], "none", 3.75),
    ],
)
def test_largest_return_of_an_episode(rewards: list[float], end: str, largest: float) -> None:
    scale = RewardScale(2, 0.5, CPU)
    play(scale, 1, rewards, end)
    assert scale.largest_returns().tolist() == [0, largest]
    scale.update()
    assert scale.largest.tolist() == [0, largest]


def test_the_largest_of_all_episodes_counts_for_each_task_by_itself() -> None:
    scale = RewardScale(3, 0.5, CPU)
    for task, rewards in ((0, [1.0]), (0, [-4.0]), (0, [2.0]), (2, [7.0])):
        play(scale, task, rewards, "terminated")
    assert scale.largest_returns().tolist() == [4, 0, 7]
    play(scale, 2, [100.0], "none")  # no longer counts before it ends
    assert scale.largest_returns().tolist() == [4, 0, 7]
    play(scale, 2, [0.0], "terminated")
    assert scale.largest_returns().tolist() == [4, 0, 100]


def test_scale() -> None:
    scale = RewardScale(3, 0.5, CPU)
    play(scale, 1, [4.0], "terminated")
    place = scale.largest.data_ptr()
    scale.update()
    assert scale.largest.data_ptr() == place
    alpha = th.tensor([0.5, 0.5, 0.0])
    # (largest + alpha * |target entropy| / (2 * 0.5)) / v_max; 1 where that is 0
    assert scale.of(alpha, -2.0, 10.0).tolist() == pytest.approx([0.1, 0.5, 1.0])
    assert scale.of(alpha, 2.0, 10.0).tolist() == pytest.approx([0.1, 0.5, 1.0])  # never 0 or below
    assert scale.of(alpha, -2.0, 1.0).tolist() == pytest.approx([1.0, 5.0, 1.0])


def test_an_episode_never_mixes_two() -> None:
    scale = RewardScale(2, 0.5, CPU)
    play(scale, 0, [8.0], "none")
    scale.begin()
    assert scale.largest_returns().tolist() == [16, 0]  # what is known of the task
    play(scale, 0, [1.0], "none")
    assert scale.largest_returns().tolist() == [16, 0]
    play(scale, 0, [1.0], "terminated")  # 9.5 or more with the reward before
    play(scale, 1, [1.0, 1.0], "terminated")
    assert scale.largest_returns().tolist() == [1.5, 1.5]  # what was known provisionally counts no more
    two, no = RewardScale(2, 0.5, CPU), np.zeros(2, bool)
    two.add(np.arange(2), np.array([8.0, 8.0]), no, no)
    two.begin(np.array([True, False]))  # one alone
    for _ in range(2):
        two.add(np.arange(2), np.array([0.0, 0.0]), ~no, no)
        assert two.largest_returns().tolist() == [0, 8]
    new = RewardScale(2, 0.5, CPU)
    new.begin(np.array([True, False]))  # before any step
    assert new.largest_returns().tolist() == [0, 0]


def test_a_known_return_needs_no_provisional_ones() -> None:
    scale = RewardScale(2, 0.5, CPU)
    scale.set_largest_returns([4.0, 0.0])
    play(scale, 0, [100.0], "none")
    assert scale.largest_returns().tolist() == [4, 0]
    play(scale, 0, [0.0], "terminated")
    play(scale, 1, [3.0], "none")  # of which nothing is known
    assert scale.largest_returns().tolist() == [100, 6]


def test_an_episode_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_scale, "LONGEST_EPISODE", 4)
    scale = RewardScale(1, 0.5, CPU)
    play(scale, 0, [1.0] * 3, "none")
    assert scale.largest_returns().tolist() == [2]
    play(scale, 0, [1.0] * 3, "none")
    assert scale.largest_returns().tolist() == [2]
    assert [len(each) for each in scale.progress()["rewards"]] == [2]


def test_progress_is_exact() -> None:
    rng = np.random.default_rng(0)
    scale, other = RewardScale(3, 0.99, CPU), RewardScale(3, 0.99, CPU)
    play(scale, 0, rng.normal(size=9).tolist())
    play(scale, 1, rng.normal(size=5).tolist(), "none")
    other.set_progress(scale.progress())
    for each in (scale, other):
        play(each, 1, [3.0])
    assert other.largest_returns().tolist() == scale.largest_returns().tolist()
    discounted = RewardScale(3, 0.9, CPU)
    discounted.set_progress(scale.progress())
    assert discounted.largest_returns().tolist() == [0, 0, 0]  # of another discount


@pytest.mark.parametrize("older", [False, True])
def test_progress_keeps_what_is_provisional(older: bool) -> None:
    scale, other = RewardScale(2, 0.5, CPU), RewardScale(2, 0.5, CPU)
    play(scale, 0, [8.0], "none")
    scale.begin()
    progress = scale.progress()
    if older:  # which had it among the largest returns
        progress["largest"] = progress.pop("provisional")
    other.set_progress(progress)
    assert other.largest_returns().tolist() == [16, 0]
    play(other, 0, [1.0], "terminated")
    assert other.largest_returns().tolist() == [1, 0]


# -------------------------------------------------------------------------------------------- in a training


def make_env(n_workers: int = 0, **kwargs: Any) -> MultiTaskVecEnv:
    makers = [partial(make_restless, task, num_tasks=M) for task in range(M)]
    return MultiTaskVecEnv(makers, n_workers=n_workers, **kwargs)


def make_model(env: Any, **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(
        buffer_size=3000, learning_starts=4 * M, batch_size=4 * M, policy_kwargs=dict(net_arch=[8]), seed=0
    )
    return MultiTaskSAC("MTMlpPolicy", env, device="cpu", **{**options, **ON, **kwargs})


def largest(model: MultiTaskSAC) -> list[float]:
    assert model.reward_scale is not None
    return model.reward_scale.largest_returns().tolist()


def weights(model: MultiTaskSAC) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.policy.state_dict().values()]


def test_any_number_of_workers_gives_the_same() -> None:
    found = []
    for n_workers in (0, 1, 2):
        env = make_env(n_workers)
        model = make_model(env).learn(40 * M)
        found.append((largest(model), weights(model)))
        env.close()
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert min(found[0][0]) > 0


def test_any_order_of_envs_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    one, other = RewardScale(2, 0.9, CPU), RewardScale(2, 0.9, CPU)
    tasks, order = np.array([0, 1, 0, 1]), np.array([2, 3, 1, 0])
    for _ in range(50):
        rewards, ends, kind = rng.normal(size=4), rng.random(4) < 0.2, rng.random(4) < 0.5
        one.add(tasks, rewards, ends & kind, ends & ~kind)
        other.add(tasks[order], rewards[order], (ends & kind)[order], (ends & ~kind)[order])
        assert other.largest_returns().tolist() == one.largest_returns().tolist()


class Pays(PointMass):
    """Rewards each step by what it was told, and terminates after some."""

    def __init__(self, rewards: list[float]) -> None:
        super().__init__(0)
        self.rewards = rewards

    def reset(self, **kwargs: Any) -> Any:
        self.t = 0
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        observation, _, _, truncated, info = super().step(action)
        self.t += 1
        return observation, self.rewards[self.t - 1], self.t == len(self.rewards), truncated, info


def paying(*of_tasks: list[float], horizon: int = 100) -> DummyVecEnv:
    names = [f"task-{i}" for i in range(len(of_tasks))]

    def make(task: int) -> TaskEnv:
        return TaskEnv(gym.wrappers.TimeLimit(Pays(of_tasks[task]), horizon), task, names)

    return DummyVecEnv([partial(make, task) for task in range(len(of_tasks))])


def test_a_model_counts_raw_rewards_and_tells_the_ends_of_episodes() -> None:
    small: dict[str, Any] = dict(gamma=0.5, batch_size=4, learning_starts=100)
    model = make_model(paying([1.0, 2.0, 3.0], [-8.0, 0.0, 0.0, 0.0]), **small)
    model.learn(2 * 2)
    assert largest(model) == [3.5, 10.0]  # unfinished, with 1.5 / 0.5 and -4 / 0.5 behind: G = 2.75, 3.5; -10, -4
    model.learn(2 * 4, reset_num_timesteps=False)
    assert largest(model) == [3.5, 8.0]


def test_rewards_are_of_the_task_that_acted() -> None:
    """Where an env goes on to another task, the next observation is of that one."""
    makers = [lambda copy, i=i: TaskEnv(Pays([100.0**i]), i, ["little", "much"]) for i in range(2)]
    model = make_model(MultiTaskVecEnv(makers, n_envs=1, n_workers=0), gamma=0.5, batch_size=4, learning_starts=100)
    model.learn(9)
    assert largest(model) == [1.0, 100.0]


def test_truncated_episodes_and_normalised_observations() -> None:
    env = MultiTaskVecNormalize(paying([1.0, 2.0, 3.0, 9.0], [0.0] * 9, horizon=3), norm_reward=False)
    model = make_model(env, gamma=0.5, batch_size=4, learning_starts=100).learn(2 * 3)
    assert largest(model) == [5.0, 0.0]
    assert model.replay_buffer is not None
    assert set(model.replay_buffer.sample(50).rewards.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_an_attribute_that_is_changed_counts_from_the_next_step_on() -> None:
    """A scale of another discount begins anew, but for the episodes that are under way."""
    model = make_model(paying([1.0, 2.0, 3.0], [-8.0, 0.0, 0.0, 0.0]), gamma=0.5, batch_size=4, learning_starts=100)
    model.learn(2 * 4)
    assert largest(model) == [3.5, 8.0]
    model.gamma = 0.9
    model.learn(2 * 4, reset_num_timesteps=False)
    assert largest(model) == pytest.approx([5.23, 8.0])  # 3, 2 + 2.7, 1 + 4.23
    model.reward_scaling = None
    model.learn(2 * 4, reset_num_timesteps=False)
    assert model.reward_scale is None
    model.reward_scaling = "per-task"
    model.learn(2 * 12, reset_num_timesteps=False)
    assert largest(model) == pytest.approx([5.23, 8.0])
    model.gamma = 1.0
    with pytest.raises(ConfigurationError, match="needs a gamma below 1"):
        model.learn(2 * 4, reset_num_timesteps=False)


def test_envs_that_are_reset_begin_new_episodes() -> None:
    """By learn() itself, after an evaluation and with other envs."""
    model = make_model(paying([8.0, 1.0, 1.0, 1.0], [0.0] * 4), gamma=0.5, batch_size=4, learning_starts=100)
    resets: list[Callable[[], Any]] = [
        lambda: model.learn(2 * 2),
        lambda: model.set_env(paying([0.0] * 4, [0.0] * 4)),
    ]
    model.learn(2 * 5)
    assert largest(model) == [8.875, 0.0]
    for reset in resets:
        reset()
        model.learn(2, reset_num_timesteps=False)
        assert model.reward_scale is not None
        assert [len(each) for each in model.reward_scale.progress()["rewards"]] == [3 if reset is resets[0] else 1] * 2


# ------------------------------------------------------------------------------------------ in a gradient step


def rewarded(factor: float, **kwargs: Any) -> MultiTaskSAC:
    """A model whose buffer holds rewards times a factor, and that saw an episode of each task."""
    model = accelerated_models.make_model("mt_sac", ent_coef=kwargs.pop("ent_coef", 0.0), **kwargs)
    buffer = model.replay_buffer
    assert buffer is not None
    buffer._rows[:, -1] *= factor  # type: ignore[attr-defined]
    if model.reward_scale is not None:
        for task in range(accelerated_models.M):
            play(model.reward_scale, task, [factor * (task + 1.0)], "terminated")
    return model


def test_rewards_times_a_hundred_learn_the_same() -> None:
    one, hundred = rewarded(1.0, **ON), rewarded(100.0, **ON)
    metrics = [accelerated_models.take_steps(model, 5) for model in (one, hundred)]
    assert metrics[0]["reward_scale"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert metrics[1]["reward_scale"] == pytest.approx([10, 20, 30, 40])
    assert accelerated_models.largest_difference(one, hundred) < 1e-5
    plain = [rewarded(factor) for factor in (1.0, 100.0)]
    for model in plain:
        assert "reward_scale" not in accelerated_models.take_steps(model, 5)
    assert accelerated_models.largest_difference(*plain) > 1e-3


def test_scaling_is_division_of_what_is_stored() -> None:
    """By a number for each task; of the target's discounted value nothing is divided."""
    scaled, by_hand = rewarded(1.0, v_max=2.0, **ON), rewarded(1.0)
    buffer = by_hand.replay_buffer
    assert buffer is not None
    rows = buffer._rows.view(accelerated_models.M, -1, buffer._rows.shape[-1])  # type: ignore[attr-defined]
    rows[..., -1] /= th.tensor([0.5, 1.0, 1.5, 2.0])[:, None]
    for model in (scaled, by_hand):
        accelerated_models.take_steps(model, 5)
    assert accelerated_models.largest_difference(scaled, by_hand) < 1e-6


def test_the_temperatures_of_the_moment_count() -> None:
    model = rewarded(1.0, ent_coef=[0.0, 0.1, 0.2, 0.4], **ON)
    found = accelerated_models.take_steps(model, 1)["reward_scale"]
    assert found == pytest.approx((np.array([1, 2, 3, 4]) + np.array([0, 0.1, 0.2, 0.4]) * 2 / 0.02) / 10)


def test_envs_whose_rewards_differ_by_a_factor_learn_the_same() -> None:
    """With all that an episode's end and the first, provisional returns do."""

    def trained(factor: float) -> MultiTaskSAC:
        rewards = [[factor * x for x in own] for own in ([1.0, 2.0, 0.5, 1.0], [-1.0, 0.0, -2.0])]
        return make_model(paying(*rewards), ent_coef=0.0, batch_size=8, learning_starts=4).learn(2 * 20)

    one, hundred = trained(1.0), trained(100.0)
    assert largest(hundred) == pytest.approx(100 * np.array(largest(one)))
    for own, other in zip(one.policy.parameters(), hundred.policy.parameters(), strict=True):
        assert th.allclose(own, other, atol=1e-4)


def test_logs_and_evaluation() -> None:
    model = make_model(paying([100.0] * 5, [1.0] * 5), gamma=0.5, batch_size=4, learning_starts=12, ent_coef=0.0)
    log = logged(model)
    model.learn(2 * 20)
    of_tasks = [log[-1][f"reward_scale/task-{i}"] for i in range(2)]
    assert of_tasks == pytest.approx([19.375, 0.19375])  # (1 + ... + 1/16) / 10
    assert log[-1]["train/reward_scale"] == pytest.approx(np.mean(of_tasks))
    returns = evaluate_tasks(model, paying([100.0] * 5, [1.0] * 5), n_eval_episodes=1).mean_return
    assert list(returns) == [500.0, 5.0]


# ------------------------------------------------------------------------------------------------ files, copies


def test_a_saved_model_goes_on_with_its_scale(tmp_path: Path) -> None:
    model = make_model(make_env()).learn(40 * M)
    before = largest(model)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        facts = json.loads(file.read("data"))
    assert facts["largest_returns"] == before
    assert "reward_scale" not in facts
    loaded = MultiTaskSAC.load(tmp_path / "model", make_env(n_envs=2))  # another number of envs
    assert largest(loaded) == before
    loaded.learn(20, reset_num_timesteps=False)
    assert all(now >= then for now, then in zip(largest(loaded), before, strict=True))
    safe = MultiTaskSAC.load(tmp_path / "model", make_env(), safe=True, policy="MTMlpPolicy")
    assert (safe.reward_scaling, safe.v_max, largest(safe)) == ("per-task", 10.0, before)
    assert largest(MultiTaskSAC.load(tmp_path / "model", gamma=0.9)) == [0.0] * M  # other returns
    off = MultiTaskSAC.load(tmp_path / "model", make_env(), reward_scaling=None)
    assert off.reward_scale is None
    off.learn(5 * M, reset_num_timesteps=False).save(tmp_path / "off")
    on = MultiTaskSAC.load(tmp_path / "off", make_env(), **ON, v_max=5.0)
    assert largest(on) == [0.0] * M
    on.learn(5 * M, reset_num_timesteps=False)
    assert min(largest(on)) > 0


@pytest.mark.parametrize("wrong", [[1.0], [1.0, 2.0, None], [1.0, 2.0, -3.0], [1.0, 2.0, float("nan")], "abc", {}])
def test_a_file_without_the_largest_returns(wrong: Any, tmp_path: Path) -> None:
    make_model(make_env()).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        content = {name: file.read(name) for name in file.namelist()}
    data = json.loads(content["data"]) | {"largest_returns": wrong}
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as file:
        for name, text in (content | {"data": json.dumps(data).encode()}).items():
            file.writestr(name, text)
    with pytest.raises(FileError, match=r"model does not hold the largest return of each of 3 tasks"):
        MultiTaskSAC.load(tmp_path / "model")
    with pytest.raises((FileError, ConfigurationError), match=r"does not hold the largest return of each of 3 tasks"):
        MultiTaskSAC.load(tmp_path / "model", make_env(), safe=True, policy="MTMlpPolicy")


def test_a_copy_learns_on_by_itself() -> None:
    model = make_model(make_point_mass_env(M)).learn(10 * M)
    copy = deepcopy(model)
    before = largest(model)
    for each in (copy, model):
        each.set_random_seed(0)
        assert largest(each) == before
        each.learn(30 * M, reset_num_timesteps=False)
    assert largest(copy) == largest(model) != before
    assert weights(copy) == weights(model)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(reward_scaling="per-tusk"), r"Unknown reward_scaling 'per-tusk': .*per-task"),
        (dict(gamma=1.0), r"reward_scaling='per-task' needs a gamma below 1: with gamma=1 the returns .* infinite"),
        (dict(v_max=0), r"v_max must be positive, not 0"),
        (dict(v_max=float("inf")), r"v_max must be a finite number, not inf"),
        (dict(reward_scaling=None, v_max="ten"), r"v_max must be a finite number, not 'ten'"),
    ],
)
def test_what_cannot_be_scaled(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(make_point_mass_env(M), **options)
    make_model(make_point_mass_env(M)).save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=message):
        MultiTaskSAC.load(tmp_path / "model", **options)


def test_rewards_are_not_scaled_twice() -> None:
    message = r"scales rewards that {} has scaled already: pass norm_reward=False there, or leave reward_scaling out"
    for name, env in (
        ("MultiTaskVecNormalize", MultiTaskVecNormalize(make_point_mass_env(M))),
        ("VecNormalize", VecNormalize(make_point_mass_env(M), norm_obs=False)),
    ):
        with pytest.raises(ConfigurationError, match=message.format(name)):
            make_model(env)
        with pytest.raises(ConfigurationError, match=message.format(name)):
            make_model(make_point_mass_env(M)).set_env(env)
        make_model(env, reward_scaling=None)
