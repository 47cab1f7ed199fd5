"""Whether the best model of a training, as MultiTaskEvalCallback chooses it, is better than its last one.

    python benchmarks/best_model.py

A simulation of trainings: each task is learned at a random time, up to a random success rate, and the policies of two
evaluations differ. What is asked is how often the model that was chosen is truly better than the last one, and how
often it is worse; else it is the last one. Beside the rule of the callback, the latest model that cannot be told from
that of the highest evaluation, stands the highest evaluation itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from sb3_softmod.evaluation.callback import MARGIN

EVALUATIONS = 20
#: Episodes of each task in an evaluation, and the margin in standard errors.
COLUMNS = [(5, 0.0), (20, 0.0), (5, MARGIN), (10, MARGIN), (20, MARGIN), (50, MARGIN)]


def outcomes(
    num_tasks: int, episodes: int, margin: float, *, learned_by: float, spread: float, trainings: int, seed: int = 0
) -> tuple[float, float, float]:
    """How often the best model is better than the last one, how often worse, and the mean difference of their success.

    :param num_tasks: M
    :param episodes: of each task in an evaluation
    :param margin: standard errors below the highest evaluation, within which the latest model counts
    :param learned_by: the share of the training in which tasks are learned; above 1, some are not
    :param spread: how much the success rate on a task differs from policy to policy, where it is neither 0 nor 1
    :param trainings: how many are simulated
    """
    rng = np.random.default_rng(seed)
    time = np.arange(1, EVALUATIONS + 1)[:, None]
    differences = np.empty(trainings)
    for training in range(trainings):
        when, speed = rng.uniform(0, EVALUATIONS * learned_by, num_tasks), rng.uniform(0.5, 2, num_tasks)
        top = rng.choice([0.0, 0.8, 0.95, 1.0], num_tasks, p=[0.1, 0.3, 0.3, 0.3])
        success = top / (1 + np.exp(-speed * (time - when)))
        success += spread * rng.normal(size=success.shape) * np.sqrt(4 * success * (1 - success) + 0.01)
        success = success.clip(0, 1)
        rates = rng.binomial(episodes, success) / episodes
        evaluated, true = rates.mean(1), success.mean(1)
        best = evaluated.argmax()
        error = np.sqrt((rates[best] * (1 - rates[best])).sum() / episodes) / num_tasks
        chosen = max(best, np.flatnonzero(evaluated > evaluated[best] - margin * error).max(initial=0))
        differences[training] = true[chosen] - true[-1]
    return float((differences > 0).mean()), float((differences < 0).mean()), float(differences.mean())


def table(trainings: int) -> Iterator[str]:
    """Lines of Markdown: better % / worse % (mean difference in points)."""
    names = [f"{episodes} episodes{'' if margin else ', the highest'}" for episodes, margin in COLUMNS]
    yield f"| tasks | learned by | spread of policies | {' | '.join(names)} |"
    yield "|---" * (3 + len(names)) + "|"
    worse_more_often, gains = np.zeros(len(COLUMNS), int), np.zeros(len(COLUMNS))
    kinds = [(m, by, spread) for m in (3, 10, 50) for by in (0.5, 0.9, 1.2) for spread in (0.05, 0.15)]
    for num_tasks, learned_by, spread in kinds:
        cells = []
        for column, (episodes, margin) in enumerate(COLUMNS):
            better, worse, difference = outcomes(
                num_tasks, episodes, margin, learned_by=learned_by, spread=spread, trainings=trainings
            )
            worse_more_often[column] += worse > better
            gains[column] += 100 * difference / len(kinds)
            cells.append(f"{100 * better:.1f} / {100 * worse:.1f} ({100 * difference:+.2f})")
        yield f"| {num_tasks} | {learned_by:.0%} | {spread} | {' | '.join(cells)} |"
    cells = [f"{count} of {len(kinds)} ({gain:+.2f})" for count, gain in zip(worse_more_often, gains, strict=True)]
    yield f"| worse more often than better | | | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=4000, help="simulated for each cell (default: 4000)")
    print(*table(parser.parse_args().trainings), sep="\n")
