"""What `overlap=True` gains: vector steps a second of SoftModSAC.learn with and without it, in turns.

    python benchmarks/overlap.py [--tasks MT10] [--rounds 7] [--steps 100] [--threads 1]

The network is small (D 128, d 128), the batch 64 samples a task. Both models learn at the same time of day,
a round each in turn; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch as th

from sb3_softmod import SoftModSAC, make_metaworld_env

RESULTS = Path(__file__).parent / "results" / "overlap.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="MT10")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="vector steps in a round")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    th.set_num_threads(args.threads)

    models = {}
    for overlap in (False, True):
        env = make_metaworld_env(args.tasks, seed=0)
        models[overlap] = SoftModSAC(
            "SoftModPolicy",
            env,
            batch_size=64 * env.num_tasks,
            learning_starts=0,
            overlap=overlap,
            policy_kwargs=dict(embedding_dim=128, module_dim=128),
            seed=0,
        )
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(args.rounds + 1):
        for overlap, model in models.items():
            start = time.perf_counter()
            model.learn(args.steps * model.n_envs, reset_num_timesteps=round_ == 0, log_interval=None)
            if round_:  # the first warms up
                speeds[overlap].append(args.steps / (time.perf_counter() - start))
    for model in models.values():
        model.get_env().close()  # type: ignore[union-attr]
    ratio = statistics.median(on / off for on, off in zip(speeds[True], speeds[False], strict=True))
    print(f"{args.tasks}, {len(os.sched_getaffinity(0))} cores, torch threads {args.threads}, {args.rounds} rounds")
    for overlap, values in speeds.items():
        spread = f"{min(values):.1f} - {max(values):.1f}"
        print(f"overlap={overlap!s:5} {statistics.median(values):7.1f} vector steps/s   ({spread})")
    print(f"ratio          {ratio:7.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    out = {"tasks": args.tasks, "threads": args.threads, "cores": len(os.sched_getaffinity(0)), "ratio": ratio}
    RESULTS.write_text(json.dumps({**out, "without": speeds[False], "with": speeds[True]}, indent=1))


if __name__ == "__main__":
    main()
