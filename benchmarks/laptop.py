"""Methods side by side with the laptop's settings: trains, plays every goal, and draws the curves.

    python benchmarks/laptop.py                                   # MT3: three methods, three seeds
    python benchmarks/laptop.py --env MT10-Conditioned --seeds 0

One run after the other, each in a process of its own. A run that is finished is not made again, so that the command
can be stopped and repeated. Options after ``--`` go to ``sb3-softmod train``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch as th

from sb3_softmod.envs.task_sets import get_task_set
from sb3_softmod.methods import get_method
from sb3_softmod.runs.curves import draw_curves
from sb3_softmod.runs.evaluation import evaluate_run
from sb3_softmod.runs.results import results_table
from sb3_softmod.runs.run import FINAL, MANIFEST, Run, load_run


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="MT3", help="task set of Meta-World (default: MT3)")
    parser.add_argument("--algos", nargs="+", default=["softmod_shallow", "mt_sac", "mt_mh_sac"], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("laptop"), help="folder for everything (default: laptop)")
    parser.add_argument("options", nargs="*", help="options of sb3-softmod train")
    args = parser.parse_args()
    name = get_task_set(args.env).name
    for algo in args.algos:
        get_method(algo)

    th.set_num_threads(1)  # enough for networks of this size
    runs = []
    for seed in args.seeds:  # by seed, so that the methods can be compared early
        for algo in args.algos:
            if find_run(args.out, algo, name, seed) is None:
                train(args.out, algo, name, seed, args.options)
            run = find_run(args.out, algo, name, seed)
            assert run is not None
            if not (run.folder / FINAL).exists():
                print(evaluate_run(run.folder, protocol="metaworld"))
            runs.append(load_run(run.folder))
            print(results_table(runs), flush=True)
    picture = args.out / f"{name}.png"
    draw_curves(runs, name).savefig(picture, dpi=150)
    print(f"\nCurves: {picture}. By task: {FINAL} in the folder of each run.")


def find_run(out: Path, algo: str, env: str, seed: int) -> Run | None:
    """The finished run of a seed, if there is one."""
    runs = [load_run(path.parent) for path in sorted(out.glob(f"{algo}/{env}_*/{MANIFEST}"))]
    return next((run for run in runs if run.finished and run.manifest["seed"] == seed), None)


def train(out: Path, algo: str, env: str, seed: int, options: list[str]) -> None:
    """One run."""
    command = f"train --algo {algo} --env {env} --seed {seed} -f {out} --conf-file laptop --num-threads 1 --verbose 0"
    subprocess.run([sys.executable, "-m", "sb3_softmod.cli", *command.split(), *options], check=True)


if __name__ == "__main__":
    main()
