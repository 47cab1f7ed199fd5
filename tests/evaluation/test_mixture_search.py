"""The search finds the mixture that a task is, and says how well it does on episodes that it did not see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corner_model import BETWEEN, corner_model, task_between
from point_mass import make_point_mass_env
from small_networks import TINY

from sb3_softmod import ConfigurationError, MultiTaskSAC, SoftModSAC, pretrained
from sb3_softmod.evaluation import evaluate_tasks, mixture_search, search_mixture
from sb3_softmod.evaluation.mixture_search import MixtureSearch

CORNERS = [f"corner-{i}" for i in range(4)]


@pytest.fixture(scope="module")
def found() -> MixtureSearch:
    return search_mixture(corner_model(), task_between(2), episodes=4, trials=60, final_episodes=20, seed=0)


def test_finds_the_mixture_that_the_task_is(found: MixtureSearch) -> None:
    assert found.task == "between"
    assert found.best.success_rate == 1.0
    # The goal is half way between corner 0 and corner 3: no corner and not their middle, but 0.15 is near enough.
    shares = np.array([found.mixture[corner] for corner in CORNERS])
    assert shares.sum() == pytest.approx(1)
    assert shares[1] + shares[2] < 0.1
    assert abs(shares[0] - shares[3]) < 0.25
    assert [each.origin for each in found.final] == ["task", "uniform", "search"]
    assert [each.success_rate for each in found.final] == [0.0, 0.0, 1.0]
    assert found.final[2] is found.best


def test_what_was_tried(found: MixtureSearch) -> None:
    assert [each.origin for each in found.tried] == ["task"] * 4 + ["uniform"] + ["search"] * 55
    for task, each in zip(CORNERS, found.tried[:4], strict=True):
        assert each.mixture == {corner: float(corner == task) for corner in CORNERS}
    assert found.tried[4].mixture == dict.fromkeys(CORNERS, 0.25)
    best = max(found.tried, key=lambda each: (each.success_rate, each.mean_return))
    assert best.mixture == found.mixture
    # Every mixture played the same episodes.
    env = task_between(2)
    env.seed(0)
    again = evaluate_tasks(corner_model().with_route(found.tried[7].mixture), env, n_eval_episodes=4)
    assert again.mean_return == [found.tried[7].mean_return]
    env.seed(0)  # the final episodes are others
    seen = evaluate_tasks(corner_model().with_route(found.mixture), env, n_eval_episodes=20)
    assert seen.mean_return != [found.best.mean_return]
    assert found.settings == dict(episodes=4, trials=60, final_episodes=20, seed=0)
    frame = found.to_frame()
    assert frame.loc[4, "corner-2"] == 0.25
    assert frame.success_rate.max() == 1.0


def test_the_table_and_the_file(found: MixtureSearch, tmp_path: Path) -> None:
    text = str(found)
    for part in (
        "between by mixtures",
        "20 fresh",
        "0 % to 16 %",
        "84 % to 100 %",
        "best: ",
        "100 % corner-",
        "uniform",
    ):
        assert part in text
    found.to_json(tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert corner_model().with_route(content["mixture"]).mixture == found.mixture
    assert len(content["tried"]) == 60
    assert content["best"]["success_rate"] == 1.0


def test_the_same_seed_finds_the_same(found: MixtureSearch) -> None:
    again = search_mixture(corner_model(), task_between(2), episodes=4, trials=60, final_episodes=20, seed=0)
    assert (again.mixture, again.final, again.tried) == (found.mixture, found.final, found.tried)
    other = search_mixture(corner_model(), task_between(2), episodes=4, trials=60, final_episodes=20, seed=1)
    assert other.tried[5:] != found.tried[5:]
    assert other.best.success_rate == 1.0


@pytest.mark.slow
def test_the_route_of_a_trained_policy() -> None:
    """Soft modularization that learned the corners alone: a mixture of them goes where no corner is."""
    options: dict[str, Any] = dict(learning_rate=3e-3, gamma=0.9, tau=0.02, ent_coef="auto_0.5", batch_size=64)
    network = dict(embedding_dim=32, module_dim=32)
    model = SoftModSAC("SoftModPolicy", make_point_mass_env(4), policy_kwargs=network, seed=0, device="cpu", **options)
    model.learn(4000)
    search = search_mixture(model, task_between(2, BETWEEN), episodes=4, trials=60, final_episodes=20, seed=0)
    assert [each.success_rate for each in search.final[:2]] == [0.0, 0.0]
    assert search.best.origin == "search"
    assert search.best.success_rate >= 0.9


def test_success_counts_before_the_return_and_returns_where_there_is_none() -> None:
    assert (
        mixture_search.TriedMixture("task", {}, 0.5, -9.0).score
        > mixture_search.TriedMixture("task", {}, 0.4, 9.0).score
    )
    assert (
        mixture_search.TriedMixture("task", {}, 0.5, 9.0).score
        > mixture_search.TriedMixture("task", {}, 0.5, -9.0).score
    )
    silent = [mixture_search.TriedMixture("task", {}, np.nan, value) for value in (1.0, 2.0)]
    assert max(silent, key=lambda each: each.score).mean_return == 2.0


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        (None, dict(trials=4), "trials must be at least 5, not 4"),
        (None, dict(episodes=0), "episodes must be at least 1, not 0"),
        (None, dict(final_episodes=True), "final_episodes must be an integer, not True"),
        (None, dict(seed=-1), "seed must be"),
        (None, dict(env_kwargs={"horizon": 9}), "env_kwargs is for envs that are made by name"),
        (None, dict(n_workers=0), "n_workers is for envs that are made by name"),
        ("corners", dict(), "searched for one task, but the env has corner-0, corner-1: search for each by itself"),
        ("ML10-test", dict(), "searched for one task, but the env has drawer-open-v3, door-close-v3"),
        ("coffee-buton-v3", dict(), "Unknown task or task set 'coffee-buton-v3': did you mean 'coffee-button-v3'"),
        ("coffee-button-v3", dict(env_kwargs={"seed": 3}), "have the seed of the search: leave it out of env_kwargs"),
        ("coffee-button-v3", dict(env_kwargs={"goal": 3}), "Unknown env argument 'goal' of .*: did you mean 'goals'"),
    ],
)
def test_bad_input(env: Any, kwargs: dict[str, Any], message: str) -> None:
    env = {None: task_between(), "corners": make_point_mass_env(2)}.get(env, env)
    with pytest.raises(ConfigurationError, match=message):
        search_mixture(corner_model(), env, **kwargs)


def test_bad_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(policy: str, tasks: int) -> MultiTaskSAC:
        return MultiTaskSAC(policy, make_point_mass_env(tasks), policy_kwargs=TINY[policy], buffer_size=9, device="cpu")

    for wrong, message in (
        (3, "Mixtures are of the tasks of a MultiTaskSAC, not of 3"),
        (model("MTMlpPolicy", 1), "A mixture needs two tasks, but the model knows corner-0 alone"),
        (model("SingleTaskPolicy", 2), "SingleTaskPolicy cannot act by a mixture"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            search_mixture(wrong, task_between())
    monkeypatch.setattr(mixture_search, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs cmaes: pip install 'sb3-softmod\[mixtures\]'"):
        search_mixture(corner_model(), task_between())


def test_a_task_of_meta_world() -> None:
    """By name, with the statistics of the model; the number of workers does not count."""
    results = [
        search_mixture(
            pretrained("MT10", device="cpu"),
            "coffee-button-v3",
            episodes=2,
            trials=12,
            final_episodes=1,
            seed=3,
            env_kwargs={"horizon": 5},
            n_workers=n_workers,
        )
        for n_workers in (0, 2)
    ]
    assert results[0].tried == results[1].tried
    assert results[0].final == results[1].final
    assert results[0].settings["horizon"] == 5
    assert len({each.mean_return for each in results[0].tried}) == 12
