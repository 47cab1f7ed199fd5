"""The mixture of a model's tasks that does best in a task that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.checks import require_integer, require_names, require_seed
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import num_tasks_of, task_names_of
from sb3_softmod.envs.gymnasium_vector import GymnasiumVecEnv
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.tasks import seed_or_drawn
from sb3_softmod.evaluation.evaluate import as_task_set, evaluate_tasks, make_evaluation_env
from sb3_softmod.evaluation.evaluated_env import check_open
from sb3_softmod.evaluation.mixture_result import ORIGINS, MixtureSearch, TriedMixture

#: CMA-ES searches the logarithms of the shares, up to this far from 0: a task may count 22,000 times more than another.
_BOUND = 5.0

#: Its first standard deviation: of three candidates two have a share within 2.7 times more or less.
_SIGMA = 1.0


def search_mixture(
    model: Any,
    env: VecEnv | VectorEnv | str,
    *,
    episodes: int = 10,
    trials: int = 100,
    final_episodes: int = 50,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    n_workers: int | None = None,
    progress_bar: bool = False,
) -> MixtureSearch:
    """Find the mixture of a model's tasks that does best in another task, by playing it; nothing is learned.

    Each task alone and the uniform mixture come first. Then CMA-ES (Hansen & Ostermeier 2001; the package ``cmaes``)
    searches the logarithms of the shares, from halfway between the best of those and the uniform mixture. What counts
    is the success rate and, of two mixtures with the same, the mean return.

    All mixtures play the same episodes, so that they differ by what they do and not by their luck. The best of many is
    still in part the luckiest: with 10 episodes, a mixture that succeeds every second time succeeds 8 times or more in
    one of 18 tries. The best mixture, the best single task and the uniform mixture are therefore measured anew, all in
    the same episodes, which the search did not see: those are the numbers to report and to compare. More ``episodes``
    make the choice better, more ``trials`` the search.

    :param model: a :class:`.MultiTaskSAC` of at least two tasks
    :param env: the name of a Meta-World task, for which envs are made; or an env of one task, which is seeded and reset
    :param episodes: that each mixture plays
    :param trials: how many mixtures are tried, each task alone and the uniform one among them
    :param final_episodes: the fresh ones, in the end
    :param seed: of the search, its episodes and the fresh ones (in envs that are made, with other goals); the same seed
        finds the same. None draws one
    :param env_kwargs: of the envs that are made: "goals", "horizon", "reward_version", "terminate_on_success", ...
    :param n_workers: of the envs that are made; the result is the same for every number
    :param progress_bar: show one
    :raises ConfigurationError: before anything is played, for a model without mixtures, an env of several tasks, fewer
        trials than there are tasks and one, or without ``cmaes``
    """
    _check_model(model)
    least = {"episodes": 1, "trials": model.num_tasks + 1, "final_episodes": 1}
    settings: dict[str, Any] = dict(episodes=episodes, trials=trials, final_episodes=final_episodes)
    for name, count in settings.items():
        require_integer(name, count, least[name])
    require_seed(seed)
    seed = seed_or_drawn(seed)
    task, make = _task_and_envs(model, env, episodes, env_kwargs, n_workers)
    settings |= {"seed": seed, **(env_kwargs or {})}

    def play(envs: VecEnv, origin: str, mixture: dict[str, float], count: int, seed: int) -> TriedMixture:
        envs.seed(seed)  # so that all begin with the same episode
        found = evaluate_tasks(model.with_route(mixture), envs, n_eval_episodes=count)
        return TriedMixture(origin, mixture, found.success_rate[0], found.mean_return[0])

    tried: list[TriedMixture] = []
    with make(seed) as envs, tqdm(total=trials, unit="mixture", disable=not progress_bar) as progress:
        for origin, mixture in islice(_candidates(model.task_names, tried, seed), trials):
            tried.append(play(envs, origin, mixture, episodes, seed))
            progress.update()
    by_origin = [[each for each in tried if each.origin == origin] for origin in ORIGINS]
    finalists = [max(group, key=lambda each: each.score) for group in by_origin if group]
    # Not seed + 1: the envs of one task have seeds that follow on each other.
    fresh = int(np.random.SeedSequence(seed).generate_state(1)[0])
    with make(fresh) as envs:
        final = [play(envs, each.origin, each.mixture, final_episodes, fresh) for each in finalists]
    best = max(finalists, key=lambda each: each.score)
    return MixtureSearch(task, final[finalists.index(best)], final, tried, settings)


def _check_model(model: Any) -> None:
    """:raises ConfigurationError: for a model of which there are no mixtures, or without what searches them"""
    if not isinstance(model, MultiTaskSAC):
        raise ConfigurationError(f"Mixtures are of the tasks of a MultiTaskSAC, not of {model!r}.")
    if model.num_tasks < 2:
        raise ConfigurationError(f"A mixture needs two tasks, but the model knows {model.task_names[0]} alone.")
    model.with_route({model.task_names[0]: 1.0})  # refuses policies that take none
    if find_spec("cmaes") is None:
        raise ConfigurationError("The search needs cmaes: pip install 'sb3-softmod[mixtures]'.")


def _task_and_envs(
    model: MultiTaskSAC, env: Any, episodes: int, env_kwargs: Mapping[str, Any] | None, n_workers: int | None
) -> tuple[str, Callable[[int], AbstractContextManager[VecEnv]]]:
    """The name of the task, and what gives envs of it for a seed: those of the user, or new ones.

    :raises ConfigurationError: for several tasks, or options of envs beside an env
    """
    if isinstance(env, VectorEnv):
        env = GymnasiumVecEnv(env)
    if isinstance(env, VecEnv):
        for name, value in (("env_kwargs", env_kwargs), ("n_workers", n_workers)):
            if value is not None:
                raise ConfigurationError(
                    f"{name} is for envs that are made by name: make the env that you pass with it."
                )
        check_open(env)
        num_tasks_of(env)
        return _only(task_names_of(env)), lambda seed: nullcontext(env)
    if env_kwargs is not None:
        require_names("env_kwargs", env_kwargs)
    options = dict(env_kwargs or {})
    if "seed" in options:
        raise ConfigurationError("The envs have the seed of the search: leave it out of env_kwargs.")
    task_set = as_task_set(env)
    task_set.arguments(options)
    like = model.with_route({model.task_names[0]: 1.0})  # an evaluation takes the statistics of its own mixture
    return _only(task_names(task_set)), lambda seed: closing(
        make_evaluation_env(like, env, most_copies=episodes, options={**options, "seed": seed}, n_workers=n_workers)
    )


def _only(names: Sequence[str]) -> str:
    """:raises ConfigurationError: for several tasks"""
    if len(names) != 1:
        raise ConfigurationError(
            f"A mixture is searched for one task, but the env has {', '.join(names)}: search for each by itself."
        )
    return names[0]


def _candidates(tasks: list[str], tried: list[TriedMixture], seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """What to try, without end, with its origin.

    :param tried: where each candidate stands, with what it did, before the next is asked for
    """
    from cmaes import CMA  # an extra

    M = len(tasks)
    rows = [("task", row) for row in np.eye(M)] + [("uniform", np.full(M, 1 / M))]
    for origin, row in rows:
        yield origin, dict(zip(tasks, row.tolist(), strict=True))
    best = max(range(M + 1), key=lambda index: tried[index].score)
    start = np.log(0.5 * rows[best][1] + 0.5 / M)
    optimizer = CMA(
        mean=np.clip(start - start.mean(), -_BOUND, _BOUND),
        sigma=_SIGMA,
        bounds=np.full((M, 2), (-_BOUND, _BOUND)),
        seed=seed,
    )
    while True:
        points = []
        for _ in range(optimizer.population_size):
            points.append(optimizer.ask())
            shares = np.exp(points[-1])
            yield "search", dict(zip(tasks, (shares / shares.sum()).tolist(), strict=True))
        scores = [each.score for each in tried[-len(points) :]]
        ranks = sorted(set(scores), reverse=True)  # it minimises, and looks at the order alone
        optimizer.tell([(point, ranks.index(score)) for point, score in zip(points, scores, strict=True)])
