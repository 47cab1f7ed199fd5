"""How far mixtures of its tasks take a trained policy in tasks that it never saw.

    python benchmarks/new_tasks.py [--tasks coffee-button-v3 door-close-v3] [--trials 40]

For each task: success of the best of the model's tasks alone, of the uniform mixture and of the best mixture that the
search proposed, all in the same fresh episodes, with goals that the search did not see. Nothing is learned. Prints a
table for docs/new_tasks.md; with ``--out`` the numbers are written after each task, and those of other tasks stay
there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch as th

from sb3_softmod import pretrained
from sb3_softmod.evaluation import MixtureSearch, search_mixture, wilson_interval
from sb3_softmod.evaluation.result import interval, percent
from sb3_softmod.learner.acceleration import keep_memory

TASKS = ("coffee-button-v3", "door-close-v3", "button-press-v3", "handle-press-v3", "plate-slide-v3")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MT10", help="that comes with the package (default: MT10)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="that it never saw")
    parser.add_argument("--episodes", type=int, default=10, help="of each mixture in the search (default: 10)")
    parser.add_argument("--trials", type=int, default=40, help="mixtures of a search (default: 40)")
    parser.add_argument("--final-episodes", type=int, default=50, help="fresh ones (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the search and of the goals (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/new_tasks.json")
    args = parser.parse_args()

    th.set_num_threads(1)
    keep_memory()
    model = pretrained(args.model, device="cpu")
    print("| task | best task alone | uniform | searched | the mixture |\n|---|---|---|---|---|")
    if args.trials < model.num_tasks + 2:
        parser.error(f"--trials must leave some for the search: at least {model.num_tasks + 2}")
    known = {"model": args.model, "tasks": {}}
    if args.out and args.out.exists():
        known = json.loads(args.out.read_text())
    if known["model"] != args.model:
        parser.error(f"{args.out} has the numbers of {known['model']}: name another file with --out")
    for task in args.tasks:
        start = time.process_time()
        found = search_mixture(
            model,
            task,
            episodes=args.episodes,
            trials=args.trials,
            final_episodes=args.final_episodes,
            seed=args.seed,
            n_workers=0,
        )
        known["tasks"][task] = {
            "final": [dataclasses.asdict(each) for each in found.final],
            "best": found.best.origin,
            "settings": found.settings,
            "cpu_seconds": round(time.process_time() - start, 1),
        }
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(known, indent=1) + "\n")
        print(row(found), flush=True)


def row(found: MixtureSearch) -> str:
    """A row of the table."""
    cells = []
    for each in found.final:
        bounds = interval(wilson_interval(each.success_rate, found.settings["final_episodes"]))
        name = f"{max(each.mixture, key=each.mixture.__getitem__)}: " if each.origin == "task" else ""
        cells.append(f"{name}{percent(each.success_rate)} ({bounds})")
    return f"| {found.task} | {' | '.join(cells)} | {found.final[-1].title} |"


if __name__ == "__main__":
    main()
