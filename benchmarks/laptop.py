"""Methods side by side: success after so many minutes of training on this machine, by Meta-World's protocol.

    python benchmarks/laptop.py --env MT10-Conditioned --minutes 15 30 60 --algos softmod_shallow mt_sac --seeds 0 1 2

Each run trains with the laptop's settings in a process of its own, one after the other. The clock runs from the
beginning of learning: compiling counts, making the envs and evaluating does not. The policy after each number of
minutes then plays each of the 50 goals of every task once; they are those of the training. A run that is finished is
not made again, one that was ended goes on where it was, and what was evaluated is not played again, so that the command
can be stopped and repeated.
Options after ``--`` go to ``sb3-softmod train``.

Success of each run and mark is in benchmarks/results/laptop_<env>.json, where those of other methods, options, seeds
and marks stay; a table of means over the seeds and a figure of all that is there are in the folder of the runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure

from sb3_softmod.common.errors import CheckpointError
from sb3_softmod.common.files import replacing
from sb3_softmod.envs.task_sets import get_task_set
from sb3_softmod.methods import get_method
from sb3_softmod.runs.curves import draw_band, quieten
from sb3_softmod.runs.evaluation import evaluation_of
from sb3_softmod.runs.results import render
from sb3_softmod.runs.run import MANIFEST, Run, load_run
from sb3_softmod.runs.statistics import aggregate
from sb3_softmod.saving.checkpoints import find
from sb3_softmod.saving.timed_snapshots import SNAPSHOTS, check_minutes

RESULTS = Path(__file__).parent / "results"

#: How long a training that was interrupted may take to write its checkpoint, in seconds.
PATIENCE = 60

#: Options that leave a training what it is, each with its value.
_OF_NO_MATTER = ("--eval-freq", "--eval-episodes", "--save-freq", "--verbose")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="MT10-Conditioned", help="task set of Meta-World (default: MT10-Conditioned)")
    parser.add_argument("--minutes", nargs="+", type=float, default=[15, 30, 60], help="marks (default: 15 30 60)")
    parser.add_argument("--algos", nargs="+", default=["softmod_shallow", "mt_sac", "mt_mh_sac"], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("laptop"), help="folder of the runs (default: laptop)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the JSON (default: benchmarks/results)"
    )
    parser.add_argument("options", nargs="*", help="options of sb3-softmod train")
    args = parser.parse_args()
    # As the command line of train has them, whose snapshots are found by them.
    minutes = check_minutes([float(f"{mark:g}") for mark in args.minutes])
    name = get_task_set(args.env).name
    for algo in args.algos:
        get_method(algo)

    th.set_num_threads(1)  # of the evaluations: enough for networks of this size
    results = args.results / f"laptop_{name}.json"
    rows = json.loads(results.read_text()) if results.exists() else []
    for seed in args.seeds:  # by seed, so that the methods can be compared early
        for algo in args.algos:
            run = finished_run(args.out, algo, name, seed, minutes, args.options)
            for mark in minutes:
                row = evaluated(run, mark, args.options)
                rows = sorted([row, *(other for other in rows if key_of(other) != key_of(row))], key=key_of)
            with replacing(results) as draft:
                draft.write_text(json.dumps(rows, indent=1) + "\n")
            table = table_of(rows)
            with replacing(args.out / f"{name}.md") as draft:
                draft.write_text(table + "\n")
            print(f"\n{table}", flush=True)
    figure_of(rows, name).savefig(args.out / f"{name}.png", dpi=150)
    print(f"\nFigure: {args.out / name}.png")


def finished_run(out: Path, algo: str, env: str, seed: int, minutes: Sequence[float], options: list[str]) -> Run:
    """The run of a method, seed and options; what there is not of it yet is made, in a process of its own."""
    asked = arguments_of(out, algo, env, seed, minutes, options)
    runs = runs_of(out, algo, env, asked)
    if not any(run.finished for run in runs):
        begun = next((run for run in runs if has_checkpoint(run)), None)
        command = asked if begun is None else ["--resume", str(begun.folder)]
        train(command)
        runs = runs_of(out, algo, env, asked)
    finished = [run for run in runs if run.finished]
    if not finished:  # Ctrl-C during the training, which has said how to go on
        sys.exit(1)
    return finished[0]


def train(arguments: list[str]) -> None:
    """Run sb3-softmod train. Ctrl-C is for it too: it writes a checkpoint, for which this process waits."""
    process = subprocess.Popen([sys.executable, "-m", "sb3_softmod.cli", "train", *arguments])
    try:
        process.wait()
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.terminate()  # where this process alone was interrupted
        process.wait()
    if process.returncode:
        sys.exit(process.returncode)  # it has said why


def runs_of(out: Path, algo: str, env: str, asked: list[str]) -> list[Run]:
    """The runs with these arguments that there are, finished or not."""
    runs = [load_run(path.parent) for path in sorted(out.glob(f"{algo}/{env}_*/{MANIFEST}"))]
    wanted = [*without_place(asked), "--env", env]  # which train adds, with the whole name
    return [run for run in runs if options_of(run)[-len(wanted) :] == wanted]


def has_checkpoint(run: Run) -> bool:
    """Whether a run can go on; one that was killed early has to begin anew."""
    try:
        find(run.folder)
    except CheckpointError:
        return False
    return True


def arguments_of(out: Path, algo: str, env: str, seed: int, minutes: Sequence[float], options: list[str]) -> list[str]:
    """The arguments of a new run."""
    command = f"--algo {algo} --env {env} --seed {seed} -f {out} --conf-file laptop --verbose 0"
    return [*command.split(), "--minutes", *(f"{mark:g}" for mark in minutes), *options]


def evaluated(run: Run, minutes: float, options: list[str]) -> dict[str, Any]:
    """How the policy after some minutes plays, and what it took to learn it; played once, and read afterwards."""
    found = evaluation_of(run.folder, protocol="metaworld", minutes=minutes)
    print(f"\n{run.title}, seed {run.manifest['seed']}, after {minutes:g} minutes\n{found}", flush=True)
    marks = json.loads((run.folder / SNAPSHOTS).read_text())
    facts = ("horizon", "goals", "reward_version", "n_envs", "network", "parameters", "hyperparams", "git")
    return {
        "method": run.method,
        "told": told_of(options),
        "seed": run.manifest["seed"],
        **next(mark for mark in marks if mark["minutes"] == minutes),
        "mean": found.mean_success_rate,
        "success": dict(zip(found.task_names, found.success_rate, strict=True)),
        "episodes_a_task": min(found.episodes),
        "machine": run.manifest["hardware"],
        "settings": {"options": options_of(run), **{name: run.manifest.get(name) for name in facts}},
    }


def options_of(run: Run) -> list[str]:
    """Its options of sb3-softmod train, but for where it lies."""
    return without_place(run.manifest.get("arguments", []))


def without_place(arguments: list[str]) -> list[str]:
    if "-f" not in arguments:
        return arguments
    place = arguments.index("-f")
    return arguments[:place] + arguments[place + 2 :]


def told_of(options: list[str]) -> str:
    """What of the options after ``--`` makes it another training."""
    rest, told = iter(options), []
    for option in rest:
        if option in _OF_NO_MATTER:
            next(rest, None)
        else:
            told.append(option)
    return shlex.join(told)


def key_of(row: dict[str, Any]) -> tuple[str, str, int, float]:
    return row["method"], row.get("told", ""), row["seed"], row["minutes"]


def title_of(row: dict[str, Any]) -> str:
    return f"{row['method']} {row.get('told', '')}".strip()


def figure_of(rows: Sequence[dict[str, Any]], name: str) -> Figure:
    """Success against minutes: a dot for each seed, and a line through the means of marks that most seeds have."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for place, title in enumerate(dict.fromkeys(map(title_of, rows))):
        own = [row for row in rows if title_of(row) == title]
        counts = Counter(row["minutes"] for row in own)
        seeds = max(counts.values())
        marks = sorted(mark for mark, count in counts.items() if count == seeds)
        means = [np.mean([100 * row["mean"] for row in own if row["minutes"] == mark]) for mark in marks]
        name_of = f"{get_method(own[0]['method']).title} {own[0].get('told', '')}".strip()
        label = f"{name_of} ({seeds} seed{'s' * (seeds > 1)})"
        draw_band(axis, place, np.array(marks), np.array(means), None, linewidth=1.6, label=label)
        each = np.array([(row["minutes"], 100 * row["mean"]) for row in own])
        axis.scatter(each[:, 0], each[:, 1], s=12, color=axis.lines[-1].get_color())
    axis.set_title(f"{name}, mean of {len(rows[0]['success'])} tasks", fontsize=9)
    axis.set_xlabel("minutes of training", fontsize=8)
    axis.set_ylabel("success rate (%)", fontsize=9)
    axis.set_xscale("log")
    axis.set_xticks(ticks := sorted({row["minutes"] for row in rows}), [f"{mark:g}" for mark in ticks])
    axis.minorticks_off()
    axis.set_ylim(-3, 103)
    quieten(axis)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Success in %, of each method and mark: mean over tasks and seeds, IQM with its 95 % interval, and each task."""
    tasks = list(rows[0]["success"])
    short = [task.removesuffix("-v3") for task in tasks]
    header = ["method", "minutes", "seeds", "env steps", "gradient steps", "mean", "IQM (95 %)", "least", *short]
    lines = []
    for title, minutes in dict.fromkeys((title_of(row), row["minutes"]) for row in rows):
        group = [row for row in rows if (title_of(row), row["minutes"]) == (title, minutes)]
        scores = np.array([[row["success"][task] for task in tasks] for row in group])
        found, by_task = aggregate(scores), scores.mean(0)
        iqm = f"{100 * found.iqm:.1f}"
        if found.iqm_interval is not None:
            iqm += " ({:.1f} to {:.1f})".format(*(100 * bound for bound in found.iqm_interval))
        steps = [f"{np.mean([row[name] for row in group]):,.0f}" for name in ("env_steps", "gradient_steps")]
        least = int(by_task.argmin())
        worst = f"{100 * by_task[least]:.0f} ({short[least]})"
        percents = [f"{100 * rate:.0f}" for rate in by_task]
        lines.append([title, f"{minutes:g}", str(len(group)), *steps, f"{100 * found.mean:.1f}", iqm, worst, *percents])
    return render("markdown", header, lines)


if __name__ == "__main__":
    main()
