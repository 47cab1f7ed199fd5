"""What one gradient step costs with each kind of gradient surgery, at 10 and at 50 tasks with the same batch.

    python benchmarks/surgery.py [--batch-size 1250] [--rounds 3]

MT-SAC's network and Meta-World's shapes, as in methods.py. In each round every kind takes a step at 10 tasks and then
at 50. Processor time, which other programs do not add to; medians over the rounds, of times and of ratios within a
round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch as th
from methods import NUM_TASKS, make_model

from sb3_softmod.learner.acceleration import keep_memory
from sb3_softmod.learner.aggregators import GRADIENT_SURGERIES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=1250, help="divisible by 10 and 50")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_memory()
    th.set_num_threads(1)  # threads that wait would count
    kinds = (None, *GRADIENT_SURGERIES)
    models = {
        (kind, n): make_model("mt_sac", n, args.batch_size, gradient_surgery=kind) for kind in kinds for n in NUM_TASKS
    }
    times: dict[tuple[str | None, int], list[float]] = {key: [] for key in models}
    for round_ in range(args.rounds + 1):
        for key, model in models.items():
            start = time.process_time()
            model.train(1, args.batch_size)
            if round_:  # the first one warms up
                times[key].append(1e3 * (time.process_time() - start))
    few, many = NUM_TASKS
    print(f"{'':14}{f'{few} tasks (min - max)':>24}{f'{many} tasks (min - max)':>24}{'x none':>14}{'growth':>8}")
    for kind in kinds:
        one, other = times[kind, few], times[kind, many]
        middle = [statistics.median(each) for each in (one, other)]
        relative = [ratio(times[kind, n], times[None, n]) for n in NUM_TASKS]
        spread = [f"{m:.0f} ms ({min(t):.0f} - {max(t):.0f})" for m, t in zip(middle, (one, other), strict=True)]
        print(f"{kind or 'none':14}{spread[0]:>24}{spread[1]:>24}", end="")
        print(f"{f'{relative[0]:.2f}, {relative[1]:.2f}':>14}{ratio(other, one):>8.2f}")


def ratio(some: list[float], others: list[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
