"""Statistics over seeds, by the rliable library (Agarwal et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sb3_softmod.common.errors import ConfigurationError

#: Bootstrap samples of an interval.
REPETITIONS = 2000
#: Seeds from which on a spread is told: of fewer, neither a standard deviation nor a bootstrap says anything.
ENOUGH_SEEDS = 3
#: Of the bootstrap, so that the same scores have the same intervals.
_SEED = 0


@dataclass(frozen=True)
class Aggregate:
    """Scores of one method on one benchmark.

    :param mean: over seeds and tasks, as in the paper
    :param std: over the seeds, of the means over tasks (the paper's; that of the population); None of fewer than
        :data:`ENOUGH_SEEDS`
    :param iqm: interquartile mean over all runs of all tasks
    :param iqm_interval: its 95 % interval by stratified bootstrap; None of so few seeds
    :param seeds: how many
    """

    mean: float
    std: float | None
    iqm: float
    iqm_interval: tuple[float, float] | None
    seeds: int


def aggregate(scores: np.ndarray) -> Aggregate:
    """Mean ± std, and interquartile mean with its interval.

    :param scores: ``[seeds, tasks]``, for instance success rates; tasks that are NaN in any run are left out
    :raises ConfigurationError: without a score
    """
    from rliable import metrics

    scores = _complete(scores)
    interval, enough = None, len(scores) >= ENOUGH_SEEDS
    if enough:
        _, interval = _estimate(scores, metrics.aggregate_iqm, REPETITIONS)
    of_seeds = scores.mean(1)
    std = float(of_seeds.std()) if enough else None
    return Aggregate(float(of_seeds.mean()), std, float(metrics.aggregate_iqm(scores)), interval, len(scores))


def mean_and_interval(of_seeds: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """The mean over seeds with its 95 % interval by Student's t, which is wide for few seeds, as it should be.

    :param of_seeds: ``[seeds, n]``
    :return: ``[n]``, and lower and upper bound ``[n]``; None instead of fewer than :data:`ENOUGH_SEEDS`
    """
    count, mean = len(of_seeds), of_seeds.mean(0)
    if count < ENOUGH_SEEDS:
        return mean, None
    from scipy.stats import t  # an extra

    half = t.ppf(0.975, count - 1) * of_seeds.std(0, ddof=1) / np.sqrt(count)
    return mean, (mean - half, mean + half)


def performance_profiles(
    scores: Mapping[str, np.ndarray], thresholds: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The share of runs, over seeds and tasks, that score above each threshold.

    :param scores: of each method ``[seeds, tasks]``
    :param thresholds: ``[n]``
    :return: of each method the profile ``[n]`` and its 95 % interval ``[2, n]``
    """
    from rliable import library

    complete = {name: _complete(of_method) for name, of_method in scores.items()}
    with _seeded():
        profiles, intervals = library.create_performance_profile(
            complete, thresholds, custom_profile_func=_shares_above, reps=REPETITIONS
        )
    return {name: (profiles[name], intervals[name]) for name in complete}


def _shares_above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """What rliable does threshold by threshold in Python, some 30 times as fast."""
    return (scores.reshape(-1, 1) > thresholds).mean(0)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """How probable it is that a run of X beats a run of Y on a task drawn at random (ties count half).

    :param x: ``[seeds, tasks]``
    :param y: ``[seeds, tasks]``, the same tasks
    :return: the probability and its 95 % interval; None instead where either has fewer than :data:`ENOUGH_SEEDS`
    :raises ConfigurationError: for different numbers of tasks
    """
    from rliable import metrics

    if x.shape[1] != y.shape[1]:
        raise ConfigurationError(f"The runs are of {x.shape[1]} and of {y.shape[1]} tasks.")
    both = np.isfinite(x).all(0) & np.isfinite(y).all(0)
    pair = (_complete(x[:, both]), _complete(y[:, both]))
    if min(map(len, pair)) < ENOUGH_SEEDS:
        return float(metrics.probability_of_improvement(*pair)), None
    # A repetition takes long: a rank test for each task.
    return _estimate(pair, metrics.probability_of_improvement, REPETITIONS // 10)


def _estimate(
    scores: np.ndarray | tuple[np.ndarray, ...], statistic: Callable[..., float], repetitions: int
) -> tuple[float, tuple[float, float]]:
    """A statistic with its 95 % interval by stratified bootstrap."""
    from rliable import library

    with _seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the bootstrap's library, about how rliable seeds it
        estimates, intervals = library.get_interval_estimates(
            {"": scores},
            lambda *drawn: np.array([statistic(*drawn)]),
            reps=repetitions,
            random_state=np.random.RandomState(_SEED),
        )
    return float(estimates[""][0]), (float(intervals[""][0, 0]), float(intervals[""][1, 0]))


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed numpy's global generator, from which rliable draws whatever random state it is given, for a while."""
    state = np.random.get_state()
    np.random.seed(_SEED)
    try:
        yield
    finally:
        np.random.set_state(state)


def _complete(scores: np.ndarray) -> np.ndarray:
    try:
        scores = np.asarray(scores, float)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"Scores must be numbers, [seeds, tasks]: {error}") from error
    if scores.ndim != 2:
        raise ConfigurationError(f"Scores have two axes, [seeds, tasks], not the shape {scores.shape}.")
    scores = scores[:, np.isfinite(scores).all(0)]
    if not scores.size:
        raise ConfigurationError("There is no score to take statistics of.")
    return scores
