"""Evaluation by name on real Meta-World, beside Meta-World's own evaluator."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import metaworld
import numpy as np
import pytest
from meta_worlds_own import use_meta_worlds_own
from metaworld.evaluation import evaluation
from metaworld.policies import ENV_POLICY_MAP
from zoo_runs import train

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize, make_metaworld_env
from sb3_softmod.evaluation import MetaWorldAgent, TaskEvaluation, evaluate_tasks, wilson_interval
from sb3_softmod.runs.evaluation import evaluate_run

TASKS = ["reach-v3", "door-open-v3", "window-close-v3"]


class Expert:
    """Meta-World's scripted policies, the one of each task; of the tasks in ``clumsy`` with a constant disturbance."""

    task_names = TASKS

    def __init__(self, *clumsy: int) -> None:
        self.policies: list[Any] = [ENV_POLICY_MAP[name]() for name in TASKS]  # type: ignore[abstract]
        self.clumsy = clumsy

    def predict(self, observations: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
        ids = observations[:, 39:].argmax(1)
        actions = [self.policies[t].get_action(o.astype(np.float64)) for t, o in zip(ids, observations[:, :39])]  # noqa: B905
        clipped = np.clip(actions, -1, 1)
        clipped[np.isin(ids, self.clumsy)] *= 0.1
        return clipped, None


class Idle:
    """Keeps still."""

    task_names = TASKS

    def predict(self, observations: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
        return np.zeros((len(observations), 4)), None


def by_metaworld(model: Any, seed: int, episodes: int, horizon: int | None) -> tuple[list[float], list[list[float]]]:
    """Success rates and returns of each task, by Meta-World's own envs and evaluator."""
    makers = [
        partial(
            metaworld.make_mt_envs,
            name,
            seed=seed,
            num_tasks=len(TASKS),
            env_id=task_id,
            use_one_hot=True,
            max_episode_steps=horizon,
            task_select="pseudorandom",  # each goal once, in an order of its own
        )
        for task_id, name in enumerate(TASKS)
    ]
    envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)  # type: ignore[arg-type]
    envs.call("toggle_sample_tasks_on_reset", True)
    _, _, success, returns = evaluation(MetaWorldAgent(model), envs, num_episodes=episodes)
    envs.close()
    return [success[name] for name in TASKS], [returns[name] for name in TASKS]


@pytest.mark.parametrize(
    ("model", "horizon"),
    [pytest.param(Expert(), None, id="expert", marks=pytest.mark.slow), pytest.param(Expert(1), 90, id="clumsy")],
)
def test_equals_meta_worlds_own_evaluator(monkeypatch: pytest.MonkeyPatch, model: Any, horizon: int | None) -> None:
    """Same goals, each of the 50 once: the same success rates, and returns to rounding."""
    with monkeypatch.context() as patch:
        use_meta_worlds_own(patch)
        success, returns = by_metaworld(model, seed=3, episodes=50, horizon=horizon)
    env_kwargs = None if horizon is None else dict(horizon=horizon)
    ours = evaluate_tasks(model, TASKS, protocol="metaworld", seed=3, env_kwargs=env_kwargs)
    assert ours.success_rate == success
    assert success[0] >= 0.95
    assert success[1] >= 0.9 if not model.clumsy else success[1] == 0
    np.testing.assert_allclose(ours.mean_return, np.mean(returns, 1), rtol=1e-4)
    assert ours.episodes == [50] * 3


def test_the_same_for_every_number_of_workers() -> None:
    options: dict[str, Any] = dict(goals="each-once", n_eval_episodes=4, env_kwargs=dict(horizon=30), seed=5)
    found, *others = (evaluate_tasks(Expert(), TASKS, n_workers=n_workers, **options) for n_workers in (0, 1, 3))
    assert others == [found, found]
    assert found.episodes == [4] * 3
    assert found.length == [30.0] * 3


def test_the_protocols() -> None:
    paper = evaluate_tasks(Idle(), TASKS, protocol="paper", env_kwargs=dict(horizon=2), seed=0)
    assert paper.episodes == [100] * 3
    assert paper.settings == dict(
        n_eval_episodes=100, deterministic=True, env=TASKS, protocol="paper", seed=0,
        goals="random", terminate_on_success=False, horizon=2,
    )  # fmt: skip
    changed = evaluate_tasks(Idle(), TASKS, protocol="metaworld", n_eval_episodes=3, env_kwargs=dict(horizon=2), seed=0)
    assert changed.episodes == [3] * 3
    assert (changed.settings["goals"], changed.settings["terminate_on_success"]) == ("each-once", True)
    assert changed.length == [2.0] * 3
    whole = evaluate_tasks(Idle(), TASKS, protocol="metaworld", n_eval_episodes=1, seed=0)
    assert whole.length == [500.0] * 3
    assert whole.settings["horizon"] == 500


def test_the_seed_is_that_of_the_model() -> None:
    """Whose envs by name have the same goals."""
    model: Any = Idle()
    options: dict[str, Any] = dict(n_eval_episodes=1, env_kwargs=dict(horizon=1))
    assert evaluate_tasks(model, TASKS, **options).settings["seed"] is None
    model.seed = 4
    assert evaluate_tasks(model, TASKS, **options).settings["seed"] == 4
    assert evaluate_tasks(model, TASKS, seed=5, **options).settings["seed"] == 5
    options["env_kwargs"]["seed"] = 6  # as run.json and the cards of models that come with the package have it
    assert evaluate_tasks(model, TASKS, **options).settings["seed"] == 6
    with pytest.raises(ConfigurationError, match="The seed is there twice: seed=5, and 6 in env_kwargs"):
        evaluate_tasks(model, TASKS, seed=5, **options)
    options["env_kwargs"]["goals"] = "fixed"
    with pytest.raises(
        ConfigurationError, match="The goals are there twice: goals='random', and 'fixed' in env_kwargs"
    ):
        evaluate_tasks(model, TASKS, goals="random", **options)


def test_the_paper_plays_the_goals_of_the_set() -> None:
    model: Any = Idle()
    model.task_names = None  # of any set
    protocols: dict[Any, str] = {"paper": "fixed", "metaworld": "each-once"}
    for protocol, goals in protocols.items():
        options: dict[str, Any] = dict(n_eval_episodes=1, env_kwargs=dict(horizon=1))
        assert evaluate_tasks(model, "MT10-Fixed", protocol=protocol, **options).settings["goals"] == goals


def test_a_model_of_normalised_observations_brings_its_statistics(tmp_path: Path) -> None:
    env = MultiTaskVecNormalize(make_metaworld_env(["reach-v3", "push-v3"], seed=0, n_workers=0), norm_reward=False)
    small = dict(embedding_dim=8, module_dim=8)
    model = MultiTaskSAC("SoftModPolicy", env, policy_kwargs=small, batch_size=8, learning_starts=1000, seed=0)
    model.learn(400)
    options: dict[str, Any] = dict(n_eval_episodes=2, env_kwargs=dict(horizon=40), seed=1, n_workers=0)
    by_name = evaluate_tasks(model, ["reach-v3", "push-v3"], **options)
    count = env.obs_rms[0].count
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model")  # without an env: the statistics are in the file
    assert evaluate_tasks(loaded, ["reach-v3", "push-v3"], **options).mean_return == by_name.mean_return
    assert env.obs_rms[0].count == count
    agent = MetaWorldAgent(model)
    raw = np.random.default_rng(0).normal(size=(3, 41))
    raw[:, 39:] = [[1, 0], [0, 1], [1, 0]]
    expected = model.predict(env.normalize_obs(raw.astype(np.float32)), deterministic=True)[0]
    np.testing.assert_array_equal(agent.eval_action(raw), expected)
    with pytest.raises(ConfigurationError, match="trained on normalised observations: load it with an env"):
        MetaWorldAgent(loaded).eval_action(raw)
    env.close()


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        ("MT3", dict(), "The model knows the tasks reach-v3, door-open-v3, window-close-v3, in this order, not MT3"),
        (TASKS, dict(protocol="meta-world"), "Unknown protocol 'meta-world': did you mean 'metaworld'"),
        (TASKS, dict(goals="rondom"), "Unknown goals 'rondom': did you mean 'random'"),
        (TASKS, dict(n_eval_episodes=0), "n_eval_episodes must be at least 1, not 0"),
        (None, dict(goals="fixed"), "goals is for envs that are made by name"),
        (None, dict(protocol="paper"), "protocol is for envs that are made by name"),
        (None, dict(seed=1), "seed is for envs that are made by name"),
    ],
)
def test_what_cannot_work_is_refused(env: Any, kwargs: dict[str, Any], message: str) -> None:
    passed = make_metaworld_env(TASKS, goals="fixed", n_workers=0) if env is None else env
    with pytest.raises(ConfigurationError, match=message):
        evaluate_tasks(Idle(), passed, **kwargs)


# ------------------------------------------------------------------------------ the result


def test_wilson_intervals() -> None:
    """Against the roots of (p - rate)^2 = z^2 p (1 - p) / n, which define the interval."""
    for successes, episodes in ((0, 10), (3, 10), (48, 50), (100, 100)):
        low, high = wilson_interval(successes / episodes, episodes)
        rate, z2 = successes / episodes, 1.959964**2 / episodes
        roots = np.sort(np.roots([1 + z2, -(2 * rate + z2), rate**2]))
        np.testing.assert_allclose([low, high], roots, atol=1e-9)
    assert all(math.isnan(bound) for bound in wilson_interval(math.nan, 0))


RESULT = TaskEvaluation(
    task_names=["a", "b", "c"],
    episodes=[50, 50, 0],
    success_rate=[0.5, math.nan, math.nan],
    success_at_end_rate=[0.25, math.nan, math.nan],
    mean_return=[100.4, 20.0, math.nan],
    length=[200.0, 150.0, math.nan],
    settings=dict(seed=3),
)


def test_means_are_of_what_was_played() -> None:
    assert RESULT.mean_success_rate == 0.5
    assert json.loads(RESULT.to_json())["mean"] == dict(
        success_rate=0.5, success_at_end_rate=0.25, mean_return=60.2, length=175.0
    )


def test_json(tmp_path: Path) -> None:
    text = RESULT.to_json(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == json.loads(text)
    assert content["settings"] == {"seed": 3}
    assert content["tasks"]["b"] == dict(
        episodes=50, success_rate=None, success_at_end_rate=None, mean_return=20.0, length=150.0,
        success_interval=[None, None],
    )  # fmt: skip
    assert content["tasks"]["a"]["success_interval"] == pytest.approx([0.3664, 0.6336], abs=1e-4)


def test_frame() -> None:
    frame = RESULT.to_frame()
    assert list(frame.index) == ["a", "b", "c"]
    assert frame.loc["a", "success_rate"] == 0.5
    assert frame.loc["a", "success_high"] == pytest.approx(0.6336, abs=1e-4)
    assert frame["mean_return"].tolist()[:2] == [100.4, 20.0]


def test_printed() -> None:
    lines = [line.split() for line in str(RESULT).splitlines() if line.strip()]
    assert lines[0] == ["50", "episodes", "a", "task"]
    assert ["a", "50", "%", "37", "%", "to", "63", "%", "25", "%", "100", "200"] in lines
    assert ["b", "20", "150"] in lines
    assert ["mean", "50", "%", "25", "%", "60", "175"] in lines


def test_the_horizon_of_a_protocol_goes_before_that_of_a_run(tmp_path: Path) -> None:
    """A run with episodes of 5 steps; its rewards stay those of its training."""
    assert train(tmp_path, algo="mt_sac", env="reach-v3", steps=20, env_kwargs=["reward_version:'v1'"]) == 0
    (folder,) = (tmp_path / "mt_sac").glob("reach-v3_*")
    by_metaworld = evaluate_run(folder, protocol="metaworld", n_eval_episodes=1)
    assert by_metaworld.settings["horizon"] == 500
    assert by_metaworld.length[0] > 5
    for protocol in ("paper", None):
        assert evaluate_run(folder, protocol=protocol, n_eval_episodes=1).length == [5.0]
    assert by_metaworld.settings["reward_version"] == "v1"
