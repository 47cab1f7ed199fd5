"""What each algorithm and policy learns on a small set of conflicting tasks, and what each callback costs there.

    python benchmarks/parts.py [--seeds 0 1 2] [--steps 500]

Four point masses whose goals exclude each other (``tests/helpers/point_mass.py``), networks of width 32, one thread of
torch. Success is that of 50 episodes a task on other initial positions. Times are those of the processor, not of the
clock, so that they count on a busy machine too. ``--write`` puts them into ``benchmarks/results/parts.json``, and from
there into the pages of the documentation.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))

from point_mass import make_point_mass_env

from sb3_softmod import CheckpointCallback, MultiTaskSAC, SoftModSAC, TimedSnapshots
from sb3_softmod.evaluation import MultiTaskEvalCallback, evaluate_tasks
from sb3_softmod.evaluation.result import percent
from sb3_softmod.methods import Method
from sb3_softmod.policies import POLICIES
from sb3_softmod.routing.snapshots import RoutingSnapshotCallback
from sb3_softmod.runs.parameters import count_parameters
from sb3_softmod.runs.progress import ProgressFileCallback

RESULTS = Path(__file__).parent / "results" / "parts.json"
DOCS = Path(__file__).parents[1] / "docs"
NUM_TASKS = 4
#: With which few gradient steps are enough: targets that follow fast, and temperatures that are low soon.
FAST: dict[str, Any] = dict(
    learning_rate=3e-3, gamma=0.9, tau=0.02, ent_coef="auto_0.5", batch_size=64, learning_starts=100
)
_WIDTHS = dict(net_arch=[32, 32])
_MODULES = dict(embedding_dim=32, module_dim=32)
#: The options of each policy's network.
SMALL: dict[str, dict[str, Any]] = {
    "SoftModPolicy": _MODULES,
    "MTMlpPolicy": _WIDTHS,
    "MultiHeadPolicy": _WIDTHS,
    "SingleTaskPolicy": _WIDTHS,
    "MixtureOfExpertsPolicy": dict(gating_arch=[16], **_WIDTHS),
    "HardRoutingPolicy": dict(num_layers=2, **_MODULES),
    "CAREPolicy": dict(embedding_dim=16, encoder_arch=[16], num_encoders=3, **_WIDTHS),
    "PaCoPolicy": _WIDTHS,
    "MOOREPolicy": _WIDTHS,
    "FiLMPolicy": dict(embedding_dim=16, **_WIDTHS),
    "BROPolicy": dict(width=32, num_blocks=1, embedding_dim=8),
}
CALLBACKS: dict[str, Callable[[Path], BaseCallback]] = {
    "MultiTaskEvalCallback": lambda folder: MultiTaskEvalCallback(
        make_point_mass_env(NUM_TASKS), eval_freq=100, best_model_save_path=str(folder), verbose=0
    ),
    "CheckpointCallback": lambda folder: CheckpointCallback(folder, save_freq=100),
    "TimedSnapshots": lambda folder: TimedSnapshots(folder, [0.005, 60]),
    "RoutingSnapshotCallback": lambda folder: RoutingSnapshotCallback(folder / "routing.npz", every=100),
    "ProgressFileCallback": ProgressFileCallback,
}


def learn(
    algorithm: type[MultiTaskSAC], policy: str, steps: int, seed: int, callback: BaseCallback | None = None
) -> tuple[MultiTaskSAC, float]:
    """A trained model, and the seconds of the processor that its training took.

    :param steps: of each env
    """
    model = algorithm(policy, make_point_mass_env(NUM_TASKS), policy_kwargs=SMALL[policy], seed=seed, **FAST)
    start = time.process_time()
    model.learn(NUM_TASKS * steps, callback)
    return model, time.process_time() - start


def measure(algorithm: type[MultiTaskSAC], policy: str, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Success of each seed, the mean over the tasks and the worst of them, and gradient steps a second."""
    found: dict[str, Any] = {"seeds": seeds, "success": [], "worst_task": [], "gradient_steps_a_second": []}
    for seed in seeds:
        model, seconds = learn(algorithm, policy, steps, seed)
        env = make_point_mass_env(NUM_TASKS)
        env.seed(100)
        result = evaluate_tasks(model, env, n_eval_episodes=50)
        found["success"].append(result.mean_success_rate)
        found["worst_task"].append(min(result.success_rate))
        found["gradient_steps_a_second"].append(round(model._n_updates / seconds, 1))
    if algorithm is MultiTaskSAC:
        count = count_parameters(Method("", "", policy), 10)
        found["parameters_on_MT10"] = {"actor": count.actor, "critic": count.critic}
    return found


def cost(name: str, steps: int, rounds: int = 3) -> dict[str, Any]:
    """Seconds of the processor that a training takes without and with a callback, in turn."""
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        for which, found in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                callback = CALLBACKS[name](Path(folder)) if which == "with" else None
                found.append(round(learn(MultiTaskSAC, "SoftModPolicy", steps, 0, callback)[1], 3))
    return {"steps": steps, **seconds}


# ------------------------------------------------------------------- into the pages


def percents(rates: list[float]) -> str:
    return ", ".join(percent(rate).removesuffix(" %") for rate in rates)


def sentences(results: dict[str, Any]) -> dict[str, str]:
    """What was measured of each part, by the name of its page."""
    steps = results["steps"]
    told = {}
    for name, found in {**results["algorithms"], **results["policies"]}.items():
        speed = np.median(found["gradient_steps_a_second"])
        seeds = ", ".join(map(str, found["seeds"]))
        told[name] = (
            f"Measured: after {steps} steps of each of four conflicting tasks (networks of width 32), success of "
            f"{percents(found['success'])} % (seeds {seeds}; the worst task {percents(found['worst_task'])} %), at "
            f"{speed:.0f} gradient steps a second of one core, with the steps of the envs."
        )
    for name, found in results["callbacks"].items():
        more = [with_it - without for with_it, without in zip(found["with"], found["without"], strict=True)]
        told[name] = (
            f"Measured: a training of {found['steps']} steps of each of four small tasks takes "
            f"{np.median(found['without']):.2f} s of one core, and with it {np.median(more):+.2f} s "
            f"({min(more):+.2f} to {max(more):+.2f} in {len(more)} rounds)."
        )
    return told


def table(results: dict[str, Any]) -> str:
    """The policies side by side, as Markdown."""
    lines = ["| policy | success, % | worst task, % | gradient steps/s | actor, one critic on MT10 |", "|---" * 5 + "|"]
    for name, found in results["policies"].items():
        speed, size = np.median(found["gradient_steps_a_second"]), found["parameters_on_MT10"]
        rates = f"{percents(found['success'])} | {percents(found['worst_task'])}"
        lines.append(f"| [`{name}`](parts/{name}.md) | {rates} | {speed:.0f} | {size['actor']:,}, {size['critic']:,} |")
    return "\n".join(lines)


def written(results: dict[str, Any]) -> dict[Path, str]:
    """The pages as they are with these results in them."""
    pages = {}
    for name, sentence in sentences(results).items():
        page = DOCS / "parts" / f"{name}.md"
        pages[page] = re.sub(r"^Measured: .*$", sentence, page.read_text(), flags=re.M)
    page = DOCS / "policies.md"
    rows = re.compile(r"^\| policy \|.*?\n(?!\|)", re.M | re.S)
    pages[page] = rows.sub(f"{table(results)}\n", page.read_text())
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500, help="of each env (default: 500)")
    parser.add_argument("--write", action="store_true", help="the JSON and the pages of the documentation")
    args = parser.parse_args()
    th.set_num_threads(1)
    results: dict[str, Any] = {"steps": args.steps, "algorithms": {}, "policies": {}, "callbacks": {}}
    for policy in POLICIES:
        results["policies"][policy] = measure(MultiTaskSAC, policy, args.steps, args.seeds)
        print(policy, results["policies"][policy], flush=True)
    results["algorithms"]["MultiTaskSAC"] = results["policies"]["SoftModPolicy"]
    results["algorithms"]["SoftModSAC"] = measure(SoftModSAC, "SoftModPolicy", args.steps, args.seeds)
    print("SoftModSAC", results["algorithms"]["SoftModSAC"], flush=True)
    for name in CALLBACKS:
        results["callbacks"][name] = cost(name, 200)
        print(name, results["callbacks"][name], flush=True)
    if args.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        for page, text in written(results).items():
            page.write_text(text)


if __name__ == "__main__":
    main()
