"""How many episodes of each task an evaluation needs, so that the best model of a training is better than its last.

    python benchmarks/best_model.py

A simulation of trainings: each task is learned at a random time, up to a random success rate, and the policies of two
evaluations differ. What is asked is how often the model with the best evaluation is truly better than the last one, and
how often it is worse; else it is the last one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

EVALUATIONS = 20


def outcomes(
    num_tasks: int, episodes: int, *, learned_by: float, spread: float, trainings: int, seed: int = 0
) -> tuple[float, float, float]:
    """How often the best model is better than the last one, how often worse, and the mean difference of their success.

    :param num_tasks: M
    :param episodes: of each task in an evaluation
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
        evaluated = rng.binomial(episodes, success).mean(1)
        true = success.mean(1)
        differences[training] = true[evaluated.argmax()] - true[-1]
    return float((differences > 0).mean()), float((differences < 0).mean()), float(differences.mean())


def table(trainings: int) -> Iterator[str]:
    """Lines of Markdown: better % / worse % (mean difference in points)."""
    counts = (5, 10, 20, 50)
    yield f"| tasks | learned by | spread of policies | {' | '.join(f'{n} episodes' for n in counts)} |"
    yield "|---" * (3 + len(counts)) + "|"
    for num_tasks in (3, 10, 50):
        for learned_by in (0.5, 0.9, 1.2):
            for spread in (0.05, 0.15):
                cells = []
                for episodes in counts:
                    better, worse, difference = outcomes(
                        num_tasks, episodes, learned_by=learned_by, spread=spread, trainings=trainings
                    )
                    cells.append(f"{100 * better:.0f} / {100 * worse:.0f} ({100 * difference:+.1f})")
                yield f"| {num_tasks} | {learned_by:.0%} | {spread} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=4000, help="simulated for each cell (default: 4000)")
    print(*table(parser.parse_args().trainings), sep="\n")
