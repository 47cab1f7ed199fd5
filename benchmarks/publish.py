"""A run's policy as a model that comes with the package.

    python benchmarks/publish.py laptop/softmod_shallow/MT10-Conditioned_1 --minutes 30 --name MT10

writes sb3_softmod/pretrained_models/MT10.zip, below 4 MB, and its card, MT10.json. Success is that of Meta-World's
protocol; where the run was not evaluated yet, that is done first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch as th

from sb3_softmod.algorithm.pretrained import FOLDER, save_pretrained
from sb3_softmod.evaluation.evaluate import Protocol
from sb3_softmod.runs.evaluation import evaluation_of, load_model
from sb3_softmod.runs.run import load_run
from sb3_softmod.saving.timed_snapshots import SNAPSHOTS

#: What a file may have, in bytes: everybody who installs the package gets it.
LIMIT = 4_000_000
PROTOCOL: Protocol = "metaworld"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--minutes", type=float, help="the model after so many minutes instead of the last")
    parser.add_argument("--name", required=True, help="of the model")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: sb3_softmod/pretrained_models)")
    args = parser.parse_args()

    th.set_num_threads(1)
    model = load_model(load_run(args.run), minutes=args.minutes)
    card = card_of(args.run, args.minutes)
    with TemporaryDirectory() as trial:  # what is there under this name stays
        size = save_pretrained(model, Path(trial) / args.name, card)[0].stat().st_size
    if size > LIMIT:
        parser.error(f"the file of {args.run} would have {size:,} bytes, more than {LIMIT:,}")
    files = save_pretrained(model, args.out / args.name, card)
    print(*files, f"{size:,} bytes", sep="\n")


def card_of(folder: Path, minutes: float | None) -> dict[str, Any]:
    """What is known of a run's policy; of one without evaluation by the protocol, once it was evaluated."""
    run = load_run(folder)
    found = evaluation_of(folder, protocol=PROTOCOL, minutes=minutes)
    facts = run.manifest
    steps = {name: facts.get(name) for name in ("env_steps", "gradient_steps")}
    if minutes is not None:
        marks = json.loads((folder / SNAPSHOTS).read_text())
        steps = next(mark for mark in marks if mark["minutes"] == minutes)
    training = ("horizon", "goals", "reward_version", "n_envs", "network", "hardware", "git")
    said_elsewhere = ("n_timesteps", "n_envs", "env_kwargs")
    settings = {k: v for k, v in (facts.get("hyperparams") or {}).items() if k not in said_elsewhere}
    return {
        "method": run.method,
        "title": run.title,
        "data": f"none but the envs of {run.benchmark}",
        "task_set": run.benchmark,
        "env_kwargs": facts["env_kwargs"],
        "seed": facts["seed"],
        "budget": steps,
        "settings": settings,
        "training": {name: facts.get(name) for name in training},
        "evaluation": found.settings,
        "mean_success": found.mean_success_rate,
        "success": dict(zip(found.task_names, found.success_rate, strict=True)),
    }


if __name__ == "__main__":
    main()
