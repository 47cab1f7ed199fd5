"""Run folders, as training leaves them: what each run was, and how its evaluations went."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import as_path, read_json
from sb3_softmod.evaluation.result import TaskEvaluation
from sb3_softmod.methods import METHODS
from sb3_softmod.runs.setting import Budget, Setting, flattened

MANIFEST, EVALUATIONS, FINAL = "run.json", "evaluations.csv", "evaluation.json"

#: Of a score that no evaluation after training gave.
DURING_TRAINING = "evaluated during training"

#: Without one of these, a manifest does not say what was compared.
_NEEDED = ("status", "method", "task_set", "tasks", "seed", "planned_env_steps")
_COLUMNS = ("success_rate", "mean_return")


@dataclass(frozen=True)
class Run:
    """One run.

    :param folder: where it is
    :param manifest: its ``run.json``
    :param timesteps: ``[n]``, environment steps over all tasks at each evaluation
    :param success: ``[n, M]``, success rate of each task; NaN where a task reports none
    :param returns: ``[n, M]``
    :param episodes: of each task in an evaluation
    """

    folder: Path
    manifest: dict[str, Any]
    timesteps: np.ndarray
    success: np.ndarray
    returns: np.ndarray
    episodes: int

    @classmethod
    def unevaluated(cls, folder: str | Path) -> Run:
        """A run by its manifest alone, whatever else is broken in its folder.

        :param folder: that holds ``run.json``
        :raises ConfigurationError: naming the folder and what is missing or broken
        """
        manifest = _manifest(as_path(folder))
        none = np.zeros((0, len(manifest["tasks"])))
        return cls(Path(folder), manifest, np.zeros(0, int), none, none, 0)

    @property
    def method(self) -> str:
        """Its name in the registry."""
        return str(self.manifest["method"])

    @property
    def title(self) -> str:
        """The name in the paper's tables."""
        return METHODS[self.method].title if self.method in METHODS else str(self.manifest.get("title", self.method))

    @property
    def benchmark(self) -> str:
        """The task set."""
        return str(self.manifest["task_set"])

    @property
    def task_names(self) -> list[str]:
        """Of the set, in order."""
        return list(self.manifest["tasks"])

    @property
    def learning_tasks(self) -> list[str]:
        """Those that learned: all, or the new ones of a policy that was adapted while the others stayed."""
        return list(self.manifest.get("learning_tasks", self.manifest["tasks"]))

    @property
    def planned_steps(self) -> int:
        """Environment steps over all tasks at which the run ends, if it does not end before, see :attr:`budget`."""
        return int(self.manifest["planned_env_steps"])

    @property
    def budget(self) -> Budget:
        """How long it learns."""
        return Budget(self.planned_steps, max(self.manifest.get("planned_minutes") or [0]) or None)

    @property
    def steps(self) -> int:
        """Environment steps of the last evaluation."""
        return int(self.timesteps[-1]) if len(self.timesteps) else 0

    @property
    def finished(self) -> bool:
        """Whether it reached its budget."""
        return self.manifest["status"] == "finished"

    @property
    def setting(self) -> Setting:
        """What must be the same in all runs of a mean."""
        horizon, goals, version = (self.manifest.get(key) for key in ("horizon", "goals", "reward_version"))
        told = self.manifest.get("hyperparams")
        of_evaluations = {k: value for k, value in (self.manifest.get("eval_env_kwargs") or {}).items() if k != "seed"}
        if told is not None and of_evaluations:
            told = {**told, "eval_env_kwargs": str(of_evaluations)}
        return Setting(
            self.budget, horizon, goals, version, self.parameters, self.begins, flattened(told),
            tasks=", ".join(self.task_names),
        )  # fmt: skip

    @property
    def begins(self) -> str:
        """What it began from, in words; of one experiment each run may have a model of its own to begin from."""
        if self.origin is None:
            return "from scratch"
        best = (self.manifest.get("adapted_from") or {}).get("model") == "best"
        return "from the best model of a run" if best else "from a trained model"

    @property
    def origin(self) -> str | None:
        """The run or model that it began from, as one path however it was written; None from scratch."""
        path = (self.manifest.get("adapted_from") or {}).get("run") or self.manifest.get("continues")
        return None if path is None else os.path.realpath(str(path))

    @property
    def goals(self) -> str:
        """Of its evaluations while it learned, in words for a figure."""
        kind = self.manifest.get("goals")
        return f"{kind} goals" if kind is not None else "goals unknown"

    @property
    def goals_seed(self) -> int | None:
        """The seed of the goals that it learned with."""
        seed: int | None = (self.manifest.get("env_kwargs") or self.manifest).get("seed")
        return seed

    @property
    def parameters(self) -> int | None:
        """Of actor and critics together; None where the manifest does not say."""
        counts = self.manifest.get("parameters") or {}
        return counts["actor"] + counts["critic"] if {"actor", "critic"} <= set(counts) else None

    @cached_property
    def evaluation(self) -> TaskEvaluation | None:
        """What ``sb3-softmod evaluate`` found; None where it did not, or before the run was resumed.

        :raises FileError: naming the file, if it is broken
        :raises ConfigurationError: if it is of other tasks
        """
        path = self.folder / FINAL
        if not path.exists():
            return None
        found = TaskEvaluation.from_json(path)
        if found.task_names != self.task_names:
            raise ConfigurationError(f"{path} is of other tasks than the run: {', '.join(found.task_names)}.")
        return found if found.settings.get("state_of_run", self.state) == self.state else None

    @property
    def state(self) -> list[int | None]:
        """How far it is, and how often it was resumed: an evaluation of another state is not of its last policy."""
        return [self.manifest.get("env_steps"), len(self.manifest.get("resumed") or [])]

    @property
    def reports_success(self) -> bool:
        """Whether an evaluation while it learned has a success rate of a task."""
        return bool(np.isfinite(self.success).any())

    @cached_property
    def final(self) -> FinalScore | None:
        """The final score: of :attr:`evaluation` or, without one, of the last evaluation of training.

        None for a run that has neither.
        """
        found = self.evaluation
        if found is not None:
            return FinalScore(np.array(found.success_rate), min(found.episodes), self.way_of(found))
        if not len(self.success):
            return None
        return FinalScore(self.success[-1], self.episodes, DURING_TRAINING)

    def way_of(self, found: TaskEvaluation) -> str:
        """How a policy of this run was evaluated, in words; the seed of the goals where it is not the training's."""
        if "during_training_at" in found.settings:
            return DURING_TRAINING
        seed, protocol, model, goals = (found.settings.get(name) for name in ("seed", "protocol", "model", "goals"))
        # Meta-World's protocol has goals of its own.
        others = protocol != "metaworld" and goals is not None and goals != self.manifest.get("goals", goals)
        parts = [
            f"{protocol} protocol" if protocol else "evaluated after training",
            *([f"the {model} model"] if model not in (None, "last") else []),
            *([f"{goals} goals"] if others else []),
            *([f"goals of seed {seed}"] if self.manifest.get("goals") and seed not in (None, self.goals_seed) else []),
        ]
        return ", ".join(parts)


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of the same method, benchmark and setting; methods in the order of the registry, settings by budget."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, run.benchmark, run.setting), []).append(run)
    places = {name: place for place, name in enumerate(METHODS)}
    order = sorted(groups, key=lambda group: (places.get(group[0], len(places)), group[0], group[1], str(group[2])))
    return [groups[group] for group in order]


@dataclass(frozen=True)
class FinalScore:
    """Success rates at the end of a run.

    :param success: ``[M]``
    :param episodes: of each task; the fewest
    :param evaluation: how they were found
    """

    success: np.ndarray
    episodes: int
    evaluation: str


def one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """The runs of one method and setting, without those that were begun anew: of a seed, and a model that was trained
    before, the one that is finished, or came farthest.

    :raises ConfigurationError: for a seed that was finished twice, so that the runs would not be independent
    """
    kept: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: (run.finished, run.steps), reverse=True):
        earlier = kept.setdefault((run.manifest["seed"], run.origin), run)
        if earlier is not run and run.finished:
            raise ConfigurationError(
                f"{earlier.folder} and {run.folder} are the same seed of the same experiment: move one away."
            )
    return [run for run in runs if kept[run.manifest["seed"], run.origin] is run]


def load_run(folder: str | Path) -> Run:
    """Read one run folder.

    :param folder: that holds ``run.json`` and, once the run was evaluated, ``evaluations.csv``
    :raises ConfigurationError: naming the folder and what is missing or broken
    """
    folder = as_path(folder)
    manifest = _manifest(folder)
    tasks = list(manifest["tasks"])
    evaluations: dict[int, dict[str, dict[str, float]]] = {}
    path = folder / EVALUATIONS
    if path.exists():
        # Half-written rows: what stands before them counts.
        half_written = suppress(ArithmeticError, csv.Error, KeyError, TypeError, ValueError)
        try:
            with path.open(newline="", errors="replace") as file, half_written:
                for row in csv.DictReader(line for line in file if line.endswith("\n")):
                    numbers = {key: float(row[key]) for key in ("episodes", *_COLUMNS, "length")}
                    evaluations.setdefault(int(np.int64(row["timesteps"])), {})[row["task"]] = numbers
        except OSError as error:
            raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error
    # A half-written evaluation, of some of the tasks, does not count either.
    whole = {steps: found for steps, found in evaluations.items() if set(found) == set(tasks)}
    if path.exists() and not whole:
        raise ConfigurationError(f"{folder}: {EVALUATIONS} holds no whole evaluation of {len(tasks)} tasks.")
    steps = sorted(whole)
    success, returns = (
        np.array([[whole[step][task][column] for task in tasks] for step in steps]).reshape(len(steps), len(tasks))
        for column in _COLUMNS
    )
    episodes = int(whole[steps[-1]][tasks[0]]["episodes"]) if steps else 0
    return Run(folder, manifest, np.array(steps, int), success, returns, episodes)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise FileError(f"{folder} is no run of sb3-softmod train: it holds no {MANIFEST}.") from error
        raise
    missing = [key for key in _NEEDED if key not in manifest]
    if missing:
        raise FileError(f"{path} lacks {', '.join(missing)}.")
    wrong = [key for key, is_right in _RIGHT.items() if not is_right(manifest.get(key))]
    if wrong:
        raise FileError(f"{path} is broken: it says {', '.join(f'{key} {manifest[key]!r}' for key in wrong)}.")
    return manifest


def _is_list_of_names(value: Any) -> bool:
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return names and 0 < len(value) == len(set(value))


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**63


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _are_counts(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_count, value.values())))


#: What the entries that tables and figures read must be.
_RIGHT: dict[str, Callable[[Any], bool]] = {
    **{key: lambda value: isinstance(value, str) for key in ("status", "method", "task_set")},
    "tasks": _is_list_of_names,
    "planned_env_steps": _is_count,
    "planned_minutes": lambda value: value is None or (isinstance(value, list) and all(map(_is_count, value))),
    **dict.fromkeys(("seed", "horizon", "goals", "reward_version"), _is_word),
    "parameters": _are_counts,
    "resumed": lambda value: value is None or isinstance(value, list),
    **dict.fromkeys(
        ("network", "hyperparams", "env_kwargs", "eval_env_kwargs", "adapted_from"),
        lambda value: value is None or isinstance(value, dict),
    ),
}


def _folders(top: Path) -> Iterable[Path]:
    """A folder and all below it, each once: what links lead to comes after what is there without them."""
    places: dict[str, Path] = {}
    waiting = deque([top])
    while waiting:
        # Not by rglob, which raises an error where a folder goes away meanwhile, as an old checkpoint does.
        for place, names, _ in os.walk(waiting.popleft()):
            if places.setdefault(os.path.realpath(place), Path(place)) != Path(place):
                names.clear()
            waiting += [Path(place, name) for name in names if os.path.islink(os.path.join(place, name))]
    return places.values()


def find_runs(logs: str | Path) -> tuple[list[Run], list[str]]:
    """All runs below a folder.

    :param logs: for instance ``logs``
    :return: the runs, by path, and for each folder that looks like one and cannot be read, what is wrong with it
    :raises ConfigurationError: if there is no such folder, or no run in it that can be read
    """
    logs = as_path(logs)
    if not os.path.isdir(logs):  # which, unlike pathlib, takes names of any length
        raise ConfigurationError(f"There is no folder {logs}.")
    runs, problems = [], []
    for folder in sorted(_folders(logs)):
        if not any((folder / mark).exists() for mark in (MANIFEST, EVALUATIONS, "evaluations.npz", "best_model.zip")):
            continue
        try:
            run = load_run(folder)
            run.final  # noqa: B018  # a broken evaluation.json is found here
            runs.append(run)
        except (ConfigurationError, OSError) as error:
            problems.append(str(error))
    if not runs:
        raise ConfigurationError("\n".join([f"No run of sb3-softmod train in {logs}.", *problems]))
    return runs, problems
