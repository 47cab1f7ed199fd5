"""Evaluate what a run learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.checks import require_number
from sb3_softmod.common.errors import ConfigurationError, FileError, SoftModError
from sb3_softmod.common.files import check_file
from sb3_softmod.evaluation.evaluate import PROTOCOLS, Protocol, evaluate_tasks
from sb3_softmod.evaluation.result import TaskEvaluation
from sb3_softmod.runs.run import FINAL, Run, load_run
from sb3_softmod.saving.checkpoints import has_checkpoint
from sb3_softmod.saving.timed_snapshots import snapshot_name


def load_model(
    run: Run, *, best: bool = False, minutes: float | None = None, device: th.device | str = "auto"
) -> MultiTaskSAC:
    """The policy of a run, to act.

    :param run: a run folder
    :param best: the one with the best mean success rate during training, instead of the last
    :param minutes: the one after so many minutes of training, of :class:`.TimedSnapshots`, instead of the last
    :param device: where it acts
    :raises ConfigurationError: if the run did not save it yet
    """
    if best and minutes is not None:
        raise ConfigurationError("Either the best model or the one after some minutes, not both.")
    if minutes is not None:
        require_number("minutes", minutes, above=0)
        path = run.folder / snapshot_name(minutes)
    else:
        path = run.folder / ("best_model.zip" if best else f"{run.benchmark}.zip")
    if not best and minutes is None and run.finished and has_checkpoint(run.folder):
        command = "adapt" if "adapted_from" in run.manifest else "train"
        raise ConfigurationError(
            f"{run.folder} was ended before all of it was written, which sb3-softmod {command} --resume {run.folder} "
            "does."
        )
    if not path.exists() and minutes is not None:
        there = ", ".join(sorted(each.name for each in run.folder.glob("model_*min.zip"))) or "none of others"
        raise ConfigurationError(f"{run.folder} holds no {path.name} (sb3-softmod train --minutes), but {there}.")
    if not path.exists():
        raise ConfigurationError(
            f"{run.folder} holds no {path.name}: "
            + ("no evaluation took place yet." if best else "the run did not end. Its best model so far: --best.")
        )
    return MultiTaskSAC.load(path, device=device)


def env_options(run: Run) -> dict[str, Any]:
    """The arguments of the envs that a run's policy was trained in, but for the seed.

    :raises ConfigurationError: for envs with wrappers, which are not made here
    """
    wrappers = [
        name for name in ("env_wrapper", "vec_env_wrapper") if (run.manifest.get("hyperparams") or {}).get(name)
    ]
    if wrappers:
        raise ConfigurationError(
            f"{run.folder} was trained in envs with a wrapper ({wrappers[0]} of its hyperparameters), and only its "
            "evaluations during training and sb3-softmod enjoy play these."
        )
    names = ("goals", "horizon", "reward_version")
    return {name: run.manifest[name] for name in names if run.manifest.get(name) is not None}


def evaluate_run(
    folder: str | Path,
    *,
    protocol: Protocol | None = None,
    n_eval_episodes: int | None = None,
    seed: int | None = None,
    best: bool = False,
    minutes: float | None = None,
    progress_bar: bool = False,
) -> TaskEvaluation:
    """Evaluate the policy of a run on its tasks, with the rewards of its training, and its goals and horizon unless the
    protocol has others, and write ``evaluation.json`` into its folder, which tables then read; for the policy after
    some minutes, ``evaluation_15min.json``, which they do not.

    :param folder: of the run
    :param protocol: see :func:`.evaluate_tasks`
    :param n_eval_episodes: see :func:`.evaluate_tasks`
    :param seed: of the goals; default that of the training, so that they are those that it was trained on
    :param best: the best model instead of the last
    :param minutes: the model after so many minutes of training instead of the last
    :param progress_bar: show one
    :raises ConfigurationError: naming the folder and what is missing
    """
    run = load_run(folder)
    out = run.folder / (FINAL if minutes is None else evaluation_name(minutes))
    check_file(out)
    model = load_model(run, best=best, minutes=minutes)
    of_protocol = PROTOCOLS.get(protocol or "", {})
    found = evaluate_tasks(
        model,
        run.benchmark,
        protocol=protocol,
        n_eval_episodes=n_eval_episodes,
        seed=run.goals_seed if seed is None else seed,
        env_kwargs={name: value for name, value in env_options(run).items() if name not in of_protocol},
        progress_bar=progress_bar,
    )
    found.settings["state_of_run"] = run.state
    found.settings["model"] = "best" if best else "last" if minutes is None else f"after {minutes:g} minutes"
    try:
        found.to_json(out)
    except FileError as error:  # such as a full disk, hours after check_file
        raise FileError(f"{error} What would be in it:\n{found}") from error
    return found


def last_of_training(run: Run) -> TaskEvaluation | None:
    """The last evaluation of training, which did not note how episodes ended; None where there was none."""
    if not run.steps:
        return None
    names, success, returns = run.task_names, run.success[-1].tolist(), run.returns[-1].tolist()
    unknown, settings = [math.nan] * len(names), {"during_training_at": run.steps}
    return TaskEvaluation(names, [run.episodes] * len(names), success, unknown, returns, unknown, settings)


def final_evaluation(run: Run) -> TaskEvaluation:
    """The one after training where there is one, else the last of training.

    :raises ConfigurationError: for a run with neither
    """
    found = run.evaluation or last_of_training(run)
    if found is None:
        raise ConfigurationError(f"{run.folder} holds no evaluation yet: sb3-softmod evaluate {run.folder}")
    return found


def evaluation_name(minutes: float) -> str:
    """The file of the evaluation of the policy after some minutes of training."""
    return f"{Path(FINAL).stem}_{minutes:g}min.json"


def evaluation_of(folder: str | Path, *, protocol: Protocol | None, minutes: float | None = None) -> TaskEvaluation:
    """What :func:`evaluate_run` finds with these arguments, read where the folder has it and played where not.

    An evaluation of other goals, of another number of episodes than the protocol's, or of an older policy is replaced.
    """
    run = load_run(folder)
    found = run.evaluation if minutes is None else _evaluation_after(run, minutes)
    if found is not None:
        episodes = PROTOCOLS.get(protocol or "", {}).get("n_eval_episodes", found.settings.get("n_eval_episodes"))
        wanted = {
            "protocol": protocol,
            "model": "last" if minutes is None else f"after {minutes:g} minutes",
            "seed": run.goals_seed,
            "n_eval_episodes": episodes,
        }
        if all(found.settings.get(name) == value for name, value in wanted.items()):
            return found
    return evaluate_run(folder, protocol=protocol, minutes=minutes)


def _evaluation_after(run: Run, minutes: float) -> TaskEvaluation | None:
    """What was found of the policy after some minutes; None where it was not played, or saved again since."""
    path, model = run.folder / evaluation_name(minutes), run.folder / snapshot_name(minutes)
    if not path.exists() or (model.exists() and model.stat().st_mtime > path.stat().st_mtime):
        return None
    return TaskEvaluation.from_json(path)


def evaluate_runs(folders: Sequence[str | Path], **kwargs: Any) -> tuple[dict[Path, TaskEvaluation], list[str]]:
    """Evaluate several runs; one that cannot be evaluated does not stop the rest.

    :param folders: of the runs
    :param kwargs: those of :func:`evaluate_run`
    :return: the results by folder, and what was wrong with each of the others
    """
    results, problems = {}, []
    for folder in folders:
        try:
            results[Path(folder)] = evaluate_run(folder, **kwargs)
        except SoftModError as error:
            problems.append(str(error))
    return results, problems
