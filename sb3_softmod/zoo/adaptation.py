"""What ``sb3-softmod adapt`` does."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch as th
import yaml
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.algorithm.adapting import INITS
from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.algorithm.pretrained import pretrained, pretrained_card
from sb3_softmod.common.checks import require_choice
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import check_folder, claim_folder, read_json, write_text
from sb3_softmod.envs.make import make_task_set_env
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.task_sets import TASK_SETS, get_task_set
from sb3_softmod.evaluation.callback import MultiTaskEvalCallback
from sb3_softmod.methods import METHODS
from sb3_softmod.networks.tunable import TUNES
from sb3_softmod.runs.evaluation import env_options, load_model
from sb3_softmod.runs.manifest import RunManifest
from sb3_softmod.runs.progress import ProgressFileCallback
from sb3_softmod.runs.run import load_run
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback
from sb3_softmod.saving.checkpoints import FOLDER as CHECKPOINTS
from sb3_softmod.saving.checkpoints import check_resumable
from sb3_softmod.saving.loading import check_arguments
from sb3_softmod.zoo.experiment import EVAL_EVERY, in_words
from sb3_softmod.zoo.key_values import key_values
from sb3_softmod.zoo.monitor_file import MonitorFile

#: Characters of a name that files can have, with what is put behind it.
_LONGEST = 200

#: Arguments of ``model.adapt`` that ``-params`` does not take.
_NOT_PARAMS = ("seed", "verbose", "policy_kwargs", "num_tasks")

#: What ``run.json`` must say of a run that is resumed.
_NEEDED = (
    "method",
    "task_set",
    "played",
    "env_options",
    "env_kwargs",
    "seed",
    "n_envs",
    "planned_env_steps",
    "adapted_from",
    "options",
)


@dataclass(frozen=True)
class Source:
    """A trained policy.

    :param title: where it is from
    :param method: its name in the registry
    :param task_set: what it was trained on
    :param env_options: of its task set
    :param env_kwargs: that its envs were made with
    :param told: its hyperparameters, without those of its envs
    :param model: with its weights
    """

    title: str
    method: str
    task_set: str
    env_options: dict[str, Any]
    env_kwargs: dict[str, Any]
    told: dict[str, Any]
    model: MultiTaskSAC


@dataclass(frozen=True)
class Adaptation:
    """One run of the command.

    :param facts: what ``run.json`` says of it
    :param args: of the command
    :param folder: of a run that is resumed; None makes one
    :param source: what is adapted; None for a run that is resumed
    :param params: arguments in place of those of the source
    """

    facts: dict[str, Any]
    args: argparse.Namespace
    folder: Path | None
    source: Source | None
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: argparse.Namespace, arguments: Sequence[str]) -> Adaptation:
        """What a command line asks for.

        :param args: what it says
        :param arguments: as they were written
        :raises ConfigurationError: for what cannot work
        """
        check_device("--device", args.device)
        if args.num_threads:
            th.set_num_threads(args.num_threads)
        if args.resume is not None:
            return cls(_facts_of(args.resume), args, args.resume, None)
        require_choice("--tune", args.tune, TUNES)
        require_choice("--init", args.init, INITS)
        params = key_values("-params", args.hyperparams)
        check_arguments(MultiTaskSAC, "adapt", params)
        for name in _NOT_PARAMS:
            if name in params:
                raise ConfigurationError(f"-params takes no {name}: it is an option of its own, or stays as it is.")
        check_folder(args.log_folder)
        for task in args.tasks:
            require_choice("task", task, [name for name in TASK_SETS if name in task_names(TASK_SETS[name])])
        source = _source(args)
        kept = [] if args.drop_tasks else [source.task_set]
        name = get_task_set("+".join([*kept, *args.tasks])).name
        if len(name) > _LONGEST:
            raise ConfigurationError(
                f"The names of these tasks make one of {len(name)} characters, and files take {_LONGEST}: adapt in "
                "Python (model.adapt), or to fewer tasks."
            )
        facts = {**_facts(args, source, name, params), "arguments": list(arguments)}
        return cls(facts, args, None, source, params)

    def run(self) -> None:
        """Adapt, learn and save; or go on."""
        folder = self.folder or self._new_folder()
        try:
            env = MonitorFile(self._envs(self.facts["played"]), str(folder), go_on=self.source is None)
            model = self._model(env, folder)
        except BaseException:
            if self.folder is None:
                shutil.rmtree(folder, ignore_errors=True)  # Windows keeps a file that is open
            raise
        _write_config(folder, self.facts)
        with closing(env):
            self._learn(model, folder)

    def _new_folder(self) -> Path:
        parent, name = self.args.log_folder / self.facts["method"], self.facts["task_set"]
        return claim_folder(parent / f"{name}_{get_latest_run_id(str(parent), name) + 1}")

    def _envs(self, tasks: list[str], **options: Any) -> VecEnv:
        task_set = get_task_set("+".join(tasks))
        kwargs = {**self.facts["env_options"], **self.facts["env_kwargs"], **options}
        workers = 0 if self.args.vec_env == "dummy" else None
        return make_task_set_env(task_set, len(task_names(task_set)), options=kwargs, n_workers=workers)

    def _model(self, env: VecEnv, folder: Path) -> MultiTaskSAC:
        if self.source is None:
            return MultiTaskSAC.resume(folder, env, self.args.device, verbose=self.args.verbose)
        model, options = self.source.model, self.facts["options"]
        model.seed, model.verbose = self.facts["seed"], self.args.verbose
        adapted = model.adapt(
            env.venv,  # type: ignore[attr-defined]  # what the search for the nearest task plays is no episode of the run
            tune=options["tune"],
            keep_tasks=options["keep_tasks"],
            init=options["init"],
            **self.params,
        )
        adapted.normalization = adapted.observation_statistics()  # for envs that have none of their own
        adapted.set_env(env)
        self.facts["adapted_from"] = {**self.facts["adapted_from"], **(adapted.adapted_from or {})}
        return adapted

    def _learn(self, model: MultiTaskSAC, folder: Path) -> None:
        facts, name = self.facts, self.facts["task_set"]
        evaluation = self._evaluation(model, folder)
        checkpoints = CheckpointCallback(
            folder,
            save_freq=_every(facts["options"]["save_freq"], facts["n_envs"]),
            how_to_resume=f"sb3-softmod adapt --resume {shlex.quote(str(folder))}",
            verbose=max(self.args.verbose - 1, 0),
        )
        evaluations = [] if evaluation is None else [evaluation]
        callbacks: list[BaseCallback] = [checkpoints, *evaluations, ProgressFileCallback(str(folder))]
        steps = facts["planned_env_steps"] if model.resumed_from is None else None  # None: what is left
        with RunManifest(folder / "run.json", model, facts, evaluation) as manifest:
            model.learn(steps, callbacks, progress_bar=self.args.progress)
            model.save(folder / f"{name}.zip")
            manifest.status = "finished" if model.num_timesteps >= facts["planned_env_steps"] else "stopped"
        if manifest.status == "finished":
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        if self.args.verbose:
            print(f"{folder}: {manifest.status} at step {model.num_timesteps:,}")

    def _evaluation(self, model: MultiTaskSAC, folder: Path) -> MultiTaskEvalCallback | None:
        """Of all tasks while it learns; None without a frequency."""
        options = self.facts["options"]
        if not (every := _every(options["eval_freq"], self.facts["n_envs"])):
            return None
        env = self._envs([self.facts["task_set"]])
        if model.get_vec_normalize_env() is not None:
            env = MultiTaskVecNormalize(env, training=False, norm_reward=False)
        return MultiTaskEvalCallback(
            env,
            n_eval_episodes=options["eval_episodes"],
            eval_freq=every,
            log_path=str(folder),
            best_model_save_path=str(folder),
            verbose=self.args.verbose,
        )


def _every(env_steps: int, n_envs: int) -> int:
    """Steps of all envs together between two; 0, or less, for never."""
    return max(env_steps // n_envs, 1) if env_steps > 0 else 0


def _source(args: argparse.Namespace) -> Source:
    """The policy that is adapted."""
    if args.pretrained is not None:
        card = pretrained_card(args.pretrained)
        model = pretrained(args.pretrained, device=args.device)
        title = f"{args.pretrained} (pretrained)"
        method, task_set = card.get("method", model.policy_class.__name__), card["task_set"]
        return Source(title, method, task_set, dict(get_task_set(task_set).options), card["env_kwargs"], {}, model)
    run = load_run(args.run)
    if not isinstance(run.manifest.get("env_kwargs"), dict):
        raise FileError(f"{run.folder / 'run.json'} does not say what its envs were made with (env_kwargs).")
    env_options(run)  # refuses wrappers
    of_set = run.manifest.get("env_options") or dict(get_task_set(run.benchmark).options)  # of an adapted one's source
    told = {name: value for name, value in (run.manifest.get("hyperparams") or {}).items() if name != "env_kwargs"}
    # Which options of the command line may have said.
    ended = run.manifest["status"] in ("finished", "ended early")
    told["budget"] = str(run.budget) if ended else f"unfinished, {run.steps:,} steps"
    model = load_model(run, best=args.best, device=args.device)
    place = os.path.abspath(run.folder)
    return Source(place, run.method, run.benchmark, of_set, run.manifest["env_kwargs"], told, model)


def _facts(args: argparse.Namespace, source: Source, name: str, params: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a new run; the goals are those of the policy's training."""
    task_set = get_task_set(name)
    of_source = source.env_options
    names = list(task_names(task_set))
    learning = names if args.tune == "all" else list(args.tasks)
    # Where everything learns, tasks that are kept and not played would be forgotten.
    played = [name] if args.tune == "all" else list(args.tasks)
    every = EVAL_EVERY * len(learning)
    told = {"tune": args.tune, "init": args.init, "keep_tasks": not args.drop_tasks}
    return {
        "method": source.method,
        "title": METHODS[source.method].title if source.method in METHODS else source.method,
        "task_set": name,
        "tasks": names,
        "new_tasks": list(args.tasks),
        "learning_tasks": learning,
        "played": played,
        **task_set.settings({**of_source, **source.env_kwargs}),
        "env_options": of_source,
        "env_kwargs": dict(source.env_kwargs),
        "seed": args.seed,
        "n_envs": len(learning),
        "planned_env_steps": args.n_timesteps,
        "planned_minutes": None,
        "adapted_from": {"run": source.title, "model": "best" if args.best else "last", "task_set": source.task_set},
        "hyperparams": {**told, **in_words(params), "source": source.told},
        "options": {
            **told,
            "eval_freq": every if args.eval_freq is None else args.eval_freq,
            "eval_episodes": args.eval_episodes,
            "save_freq": every if args.save_freq is None else args.save_freq,
        },
        "command": " ".join(sys.orig_argv),
    }


def _facts_of(folder: Path) -> dict[str, Any]:
    """What the manifest of a run says that is to be resumed.

    :raises ConfigurationError: for a folder that is no such run, or one that is finished
    """
    manifest = read_json(folder / "run.json")
    check_resumable(folder, manifest.get("status"))
    if "adapted_from" not in manifest:
        raise ConfigurationError(f"{folder} was not adapted: go on with sb3-softmod train --resume {folder}")
    missing = [name for name in _NEEDED if name not in manifest]
    if missing:
        raise FileError(f"{folder / 'run.json'} is broken: it does not say {', '.join(missing)}.")
    return dict(manifest)


def _write_config(folder: Path, facts: dict[str, Any]) -> None:
    """What ``sb3-softmod enjoy`` reads of a run."""
    path = folder / facts["task_set"] / "config.yml"
    write_text(path, yaml.safe_dump({"env_kwargs": {**facts["env_options"], **facts["env_kwargs"]}}))
