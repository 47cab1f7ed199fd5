"""What a command line of ``sb3-softmod train`` comes to, without training."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.methods import METHODS
from sb3_softmod.zoo.experiment import MultiTaskExperimentManager
from sb3_softmod.zoo.train import check_tracking, train

#: The options that change what a run learns or measures, beside its hyperparameters, budget and seed.
_OPTIONS = ("eval_freq", "eval_episodes", "eval_env_kwargs", "trained_agent", "truncate_last_trajectory")


@dataclass(frozen=True)
class RunSettings:
    """What a run would be.

    :param task_set: its name
    :param num_tasks: M
    :param num_envs: that are made: those to learn in, and those to evaluate in
    :param steps: environment steps over all tasks at which it ends
    :param minutes: after which it saves its model, and the last of which it learns to instead; none for a run that
        ends at ``steps``
    :param hyperparams: completed, as they would be saved in ``config.yml``
    :param options: the others that change what comes out; of the model that it goes on from the checksum
    """

    task_set: str
    num_tasks: int
    num_envs: int
    steps: int
    minutes: tuple[float, ...]
    hyperparams: dict[str, Any]
    options: dict[str, Any]


def settings_of(arguments: Sequence[str]) -> RunSettings:
    """Read a command line as ``train`` would, up to the moment when it would make a folder.

    :param arguments: after "train"
    :raises ConfigurationError: for whatever ``train`` would refuse until then, and for what is none of our methods on
        one of our task sets
    """
    if "--track" in arguments:
        check_tracking()
    try:
        with redirect_stdout(io.StringIO()):
            train([text for text in arguments if text != "--track"], _Probe)  # it would begin a run there
    except _FoundError as found:
        return found.settings
    raise ConfigurationError(f"train {' '.join(arguments)} trains no method of sb3-softmod on one of its task sets.")


class _FoundError(Exception):
    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings


class _Probe(MultiTaskExperimentManager):
    """Says what it would do instead."""

    def create_log_folder(self) -> None:
        if self.algo not in METHODS or self.optimize_hyperparameters:
            raise ConfigurationError("A run of a grid trains one of our methods; it does not --optimize.")
        options = {name: vars(self.args)[name] for name in _OPTIONS}
        if agent := options["trained_agent"]:
            options["trained_agent"] = hashlib.sha256(Path(agent).read_bytes()).hexdigest()
        raise _FoundError(
            RunSettings(
                task_set=self.task_set.name,
                num_tasks=len(self.task_names),
                num_envs=self.n_envs + (self.n_eval_envs if self.eval_freq > 0 else 0),
                steps=int(self.n_timesteps),
                minutes=tuple(self.args.minutes or ()),
                hyperparams=self.told,
                options=options,
            )
        )
