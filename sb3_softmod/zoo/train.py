"""``sb3-softmod train``: RL Zoo's own train script, on many tasks."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import rl_zoo3.train

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.checks import require_choice
from sb3_softmod.common.command_line import Parser
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import check_folder, read_json
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.task_sets import NAMESPACE, TASK_SETS, get_task_set
from sb3_softmod.methods import METHODS
from sb3_softmod.saving.checkpoints import check_resumable
from sb3_softmod.saving.timed_snapshots import check_minutes
from sb3_softmod.zoo.configs import find_config
from sb3_softmod.zoo.experiment import EVAL_EPISODES, EVAL_EVERY, MultiTaskExperimentManager
from sb3_softmod.zoo.key_values import KeyValues
from sb3_softmod.zoo.registration import ALGOS, register_methods, short_env_ids
from sb3_softmod.zoo.tuning import check_storage

#: The options that a run may be resumed with, and whether a value follows: they leave its numbers as they are.
_RESUME_OPTIONS = {
    "-P": False,
    "--progress": False,
    "--verbose": True,
    "--num-threads": True,
    "--vec-env": True,
    "--device": True,
}

_INTRODUCTION = """\
usage: sb3-softmod train --algo METHOD --env TASKS [options]

Train a method on a set of tasks. This is RL Zoo's train script with our methods and tasks: what it writes to
logs/METHOD/TASKS_1/ is what RL Zoo's other scripts read.

  sb3-softmod train --algo softmod_deep --env MT50-Conditioned --seed 1 -P
  sb3-softmod train --algo softmod_deep --env MT3 --conf-file laptop
  sb3-softmod train --algo softmod_deep --env MT3 --conf-file laptop --minutes 10 20
  sb3-softmod train --resume logs/softmod_deep/MT3_1

methods:
{methods}

tasks:
{tasks}
  a single task                   reach-v3, drawer-close-v3, ...: the 50 of Meta-World

What is different from RL Zoo:
  --conf-file                     "paper" (default), "laptop", or a file of yours
  --vec-env                       subproc (default): the envs are stepped by one process a core; dummy: by this one
  --n-eval-envs                   default: one for each task; every task is evaluated in --eval-episodes episodes,
                                  by default {episodes}
  --eval-freq                     default: every {every:,} steps of each task
  --save-freq                     default: a checkpoint to resume from every {every:,} steps of each task, the last
                                  two are kept; 0: only at Ctrl-C or SIGTERM, which end a run with a checkpoint; a
                                  number: that often, and the model too, as RL Zoo does
  --resume RUN                    go on with a run that was ended by whatever cause; no other option but
                                  {resume_options}
  -params policy_kwargs:...       adds to those of the method
  --minutes                       train so many minutes; several: with the model after each of them
  --gym-packages                  may add methods of yours to sb3_softmod.methods.METHODS
  --env-kwargs                    goals, horizon, reward_version, seed, ...: adds to those of the file

"""


def train(
    arguments: Sequence[str], manager_class: type[MultiTaskExperimentManager] = MultiTaskExperimentManager
) -> None:
    """Run the command.

    :param arguments: of the command line, after "train"
    :param manager_class: of the experiment
    :raises ConfigurationError: for bad input, before anything is made
    """
    register_methods()
    if {"-h", "--help"}.intersection(arguments):
        print(_help())
        return
    resumed_run = _known(arguments).resume
    if resumed_run is not None:
        arguments = _arguments_of(resumed_run, arguments)
    known = _read(arguments)
    defaults: list[str] = []
    with contextlib.ExitStack() as stack:
        if known.env in TASK_SETS:
            num_tasks = len(task_names(TASK_SETS[known.env]))
            defaults = ["--vec-env", "subproc", "--n-eval-envs", str(num_tasks)]
            defaults += ["--eval-freq", str(EVAL_EVERY * num_tasks), "--eval-episodes", str(EVAL_EPISODES)]
            stack.enter_context(short_env_ids())
            manager = partial(manager_class, resumed_run=resumed_run)
            stack.enter_context(_replaced(rl_zoo3.train, "ExperimentManager", manager))
        stack.enter_context(_replaced(rl_zoo3.train, "StoreDict", KeyValues))
        stack.enter_context(_replaced(rl_zoo3.train, "argparse", SimpleNamespace(ArgumentParser=_ZooParser)))
        stack.enter_context(_replaced(sys, "argv", ["sb3-softmod train", *defaults, *arguments, "--env", known.env]))
        rl_zoo3.train.train()


class _ZooParser(Parser):
    """Reads the options of RL Zoo, and refuses what could not be used once the envs are made."""

    def __init__(self) -> None:
        super().__init__(prog="sb3-softmod train")
        self.add_argument(
            "--minutes",
            type=float,
            nargs="+",
            help="Train so long instead of n_timesteps, evaluations not counted; the model after each of these numbers "
            "of minutes is saved as model_15min.zip, and the last one ends the training",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        check_device("--device", found.device)
        for folder in (found.log_folder, found.tensorboard_log, found.optimization_log_path):
            if folder:
                check_folder(folder)
        if found.track:
            check_tracking()
        if found.trial_id is not None and not (found.storage and found.study_name):
            raise ConfigurationError("--trial-id needs the --storage and the --study-name of the trial.")
        if found.storage:
            check_storage(found.storage)
        if found.minutes is not None:
            _check_minutes(found)
        return found, rest


def check_tracking() -> None:
    """Refuse --track where it would find no wandb."""
    if find_spec("wandb") is None:
        raise ConfigurationError("--track needs a package that is not installed: pip install wandb")


def _check_minutes(given: argparse.Namespace) -> None:
    """Refuse a training by time that would be one by steps too, or that nobody could end.

    :param given: the options of RL Zoo, with ``minutes``
    """
    given.minutes = check_minutes(given.minutes)
    if given.n_timesteps > 0 or "n_timesteps" in (given.hyperparams or {}):
        raise ConfigurationError("--minutes says how long to train: leave out the number of steps (-n, n_timesteps).")
    if given.optimize_hyperparameters:
        raise ConfigurationError("--minutes is for a training; --optimize compares trials of as many steps.")
    if given.env not in TASK_SETS or not issubclass(ALGOS[given.algo], MultiTaskSAC):
        raise ConfigurationError("--minutes is for the methods of this package, on its task sets.")


def _known(arguments: Sequence[str]) -> argparse.Namespace:
    """What must be known before RL Zoo reads the rest."""
    parser = Parser(prog="sb3-softmod train", add_help=False, allow_abbrev=False)
    parser.set_defaults(passes_on=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--algo")
    parser.add_argument("--env")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-i", "--trained-agent")
    return parser.parse_known_args(arguments)[0]


def _arguments_of(run: Path, given: Sequence[str]) -> list[str]:
    """The command line of a run that is to be resumed, with the options that it is resumed with.

    :raises ConfigurationError: for a folder that is no run, a run that is finished, or options that would change it
    """
    manifest = read_json(run / "run.json")
    check_resumable(run, manifest.get("status"))
    if "adapted_from" in manifest:
        raise ConfigurationError(f"{run} adapts a policy: go on with sb3-softmod adapt --resume {run}")
    if "arguments" not in manifest:
        raise ConfigurationError(f"{run} was made by an older version, which wrote no checkpoints.")
    before, seed = manifest["arguments"], manifest.get("seed")
    if not isinstance(before, list) or not all(isinstance(text, str) for text in before) or not isinstance(seed, int):
        raise FileError(f"{run / 'run.json'} is broken: it says arguments {before!r}, seed {seed!r}.")
    options: list[str] = []
    rest = iter(given)
    for option in rest:
        if option.startswith("--resume"):
            if option == "--resume":
                next(rest)
        elif option.partition("=")[0] in _RESUME_OPTIONS:
            takes_next = _RESUME_OPTIONS[option.partition("=")[0]] and "=" not in option
            options += [option, *([next(rest, "")] if takes_next else [])]
        else:
            raise ConfigurationError(
                f"--resume takes no {option}: a run goes on as it began. Only {', '.join(_RESUME_OPTIONS)} may follow."
            )
    return [*_placed(run, before, str(manifest.get("method"))), "--seed", str(seed), *options]


def _placed(run: Path, arguments: Sequence[str], method: str) -> list[str]:
    """The command line of a run whose folder may have been moved since, without what it began from.

    Logs for TensorBoard that were within the folder of the runs have moved with it.
    """
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("-f", "--log-folder", default="logs")
    known.add_argument("-tb", "--tensorboard-log")
    known.add_argument("-i", "--trained-agent")
    found, rest = known.parse_known_args(arguments)
    here, before = run.resolve(), Path(found.log_folder)
    if found.tensorboard_log:
        board = Path(found.tensorboard_log)
        if here.parent.name == method and board.is_relative_to(before):
            board = here.parent.parent / board.relative_to(before)
        rest += ["-tb", str(board)]
    return [*rest, "-f", str(here)]  # where nothing is made: the run has its folder


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line says of method, env and files, checked."""
    known = _known(arguments)
    register_methods(known.gym_packages)
    for name, examples in (("algo", METHODS), ("env", TASK_SETS)):
        if getattr(known, name) is None:
            few = ", ".join(list(examples)[:6])
            raise ConfigurationError(f"--{name} is missing: {few}, ... (sb3-softmod train --help)")
    require_choice("algo", known.algo, ALGOS)
    if known.algo in METHODS or known.env not in gym.registry or known.env.startswith(f"{NAMESPACE}/"):
        known.env = get_task_set(known.env).name
        if known.env not in TASK_SETS:
            raise ConfigurationError(
                f"{known.env} is a set for a trained policy (sb3-softmod adapt): --env takes one of those of --help."
            )
    if known.conf_file is not None:
        find_config(known.conf_file)
    if known.trained_agent and not (known.trained_agent.endswith(".zip") and os.path.isfile(known.trained_agent)):
        raise ConfigurationError(f"There is no model {known.trained_agent!r} to go on with: name a .zip file.")
    return known


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def options() -> Parser:
    """The parser of RL Zoo's options and ours."""
    register_methods()
    parser = _ZooParser()
    with (
        _replaced(sys, "argv", ["sb3-softmod train", "--help"]),
        _replaced(rl_zoo3.train, "argparse", SimpleNamespace(ArgumentParser=lambda: parser)),
        contextlib.suppress(SystemExit),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        rl_zoo3.train.train()  # which makes its parser itself
    parser.add_argument("--resume", metavar="RUN", help="Go on with a run that was ended by whatever cause")
    return parser


def _help() -> str:
    printed = options().format_help()
    # The list of all algorithms stands in the introduction.
    described = printed.replace("{" + ",".join(ALGOS) + "}", "METHOD")
    sets = [name for name, task_set in TASK_SETS.items() if task_set.name not in task_names(task_set)]
    return (
        _INTRODUCTION.format(
            methods="\n".join(f"  {name:<32}{method.title}" for name, method in METHODS.items()),
            tasks="\n".join(f"  {name:<32}{_described(name)}" for name in sets),
            every=EVAL_EVERY,
            episodes=EVAL_EPISODES,
            resume_options=", ".join(_RESUME_OPTIONS),
        )
        + described[described.index("options:") :]
    )


def _described(name: str) -> str:
    names = task_names(TASK_SETS[name])
    goals = {"fixed": ", one goal each", "random": ", 50 goals each", None: ""}[TASK_SETS[name].options.get("goals")]
    listed = ", ".join(names) if len(names) < 10 else f"{len(names)} tasks"
    return listed + goals
