"""Methods side by side with the laptop's settings: trains, evaluates on every goal, and draws the curves.

    python benchmarks/laptop.py                                    # MT3, three methods, three seeds: about 3 hours
    python benchmarks/laptop.py --env MT10-Conditioned --seeds 0

A run that is finished is not made again, so that the command can be stopped and repeated. Options after ``--`` go to
``sb3-softmod train``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.figure import Figure

from sb3_softmod import MultiTaskSAC
from sb3_softmod.envs.make import make_task_set_env
from sb3_softmod.envs.task_sets import get_task_set
from sb3_softmod.evaluation import TaskEvaluation, evaluate_tasks
from sb3_softmod.methods import METHODS, get_method

#: Meta-World's number of goals of a task: each is played once.
EPISODES = 50


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--env", default="MT3", help="task set (default: MT3)")
    parser.add_argument("--algos", nargs="+", default=["softmod_deep", "mt_sac", "mt_mh_sac"], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("laptop"), help="folder for everything (default: laptop)")
    parser.add_argument("options", nargs="*", help="further options of sb3-softmod train, after --")
    args = parser.parse_args()

    th.set_num_threads(1)  # enough for networks of this size
    runs: dict[str, list[Path]] = {}
    results: dict[str, list[TaskEvaluation]] = {}
    for algo in args.algos:
        get_method(algo)
        for seed in args.seeds:
            run = find_run(args.out, algo, args.env, seed)
            if run is None:
                train(args.out, algo, args.env, seed, args.options)
                run = find_run(args.out, algo, args.env, seed)
                assert run is not None
            runs.setdefault(algo, []).append(run)
            results.setdefault(algo, []).append(evaluate(run))
    text = table(results)
    print(text)
    (args.out / f"{args.env}.md").write_text(text)
    picture = args.out / f"{args.env}.png"
    draw(runs).savefig(picture, dpi=150)
    print(f"\nCurves: {picture}")


def find_run(out: Path, algo: str, env: str, seed: int) -> Path | None:
    """The finished run of a seed, if there is one."""
    for path in sorted(out.glob(f"{algo}/{env}_*/run.json")):
        facts = json.loads(path.read_text())
        if facts["seed"] == seed and facts["status"] == "finished":
            return path.parent
    return None


def train(out: Path, algo: str, env: str, seed: int, options: list[str]) -> None:
    """One run, in a process of its own."""
    command = f"train --algo {algo} --env {env} --seed {seed} -f {out} --conf-file laptop --num-threads 1 --verbose 0"
    subprocess.run([sys.executable, "-m", "sb3_softmod.cli", *command.split(), *options], check=True)


def evaluate(run: Path) -> TaskEvaluation:
    """The last model of a run on every goal of its training once; kept in ``final.json``."""
    kept = run / "final.json"
    if not kept.exists():
        facts = json.loads((run / "run.json").read_text())
        task_set = get_task_set(facts["task_set"])
        options = facts["env_kwargs"] | (dict(goals="each-once") if facts["goals"] == "random" else {})
        env = make_task_set_env(task_set, len(facts["tasks"]), options=options)
        model = MultiTaskSAC.load(run / f"{task_set.name}.zip", env=env, buffer_size=len(facts["tasks"]))
        found = evaluate_tasks(model, model.get_env(), n_eval_episodes=EPISODES)  # type: ignore[arg-type]
        env.close()
        kept.write_text(json.dumps(vars(found)))
    return TaskEvaluation(**json.loads(kept.read_text()))


def table(results: dict[str, list[TaskEvaluation]]) -> str:
    """Success rates in Markdown: of each task the mean over the seeds, and of their mean the range too."""
    tasks = next(iter(results.values()))[0].task_names
    lines = ["| | " + " | ".join([*tasks, "mean", "seeds"]) + " |", "|---" * (len(tasks) + 3) + "|"]
    for algo, found in results.items():
        rates = np.array([one.success_rate for one in found])
        of_seeds = rates.mean(1)
        cells = [f"{rate:.0%}" for rate in rates.mean(0)]
        seeds = ", ".join(f"{rate:.0%}" for rate in of_seeds)
        lines.append("| " + " | ".join([METHODS[algo].title, *cells, f"**{of_seeds.mean():.0%}**", seeds]) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[Path]]) -> Figure:
    """Mean success rate by environment steps: the mean over the seeds, and each seed in the background."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (algo, folders) in enumerate(runs.items()):
        logs = [np.load(folder / "evaluations.npz") for folder in folders]
        colour = f"C{number}"
        for log in logs:
            axis.plot(log["timesteps"], log["successes"].mean(1), color=colour, alpha=0.3, linewidth=1)
        length = min(len(log["timesteps"]) for log in logs)
        mean = np.mean([log["successes"][:length].mean(1) for log in logs], 0)
        axis.plot(logs[0]["timesteps"][:length], mean, color=colour, linewidth=2, label=METHODS[algo].title)
    axis.set_xlabel("environment steps, all tasks together")
    axis.set_ylabel("mean success rate")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


if __name__ == "__main__":
    main()
