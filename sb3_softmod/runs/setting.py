"""What must be the same in all runs of a mean, and what tells the settings of others apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

#: Hyperparameters that do not make a run another one: what a setting has for itself, the seed, and what changes nothing
#: but rounding.
_APART = (
    "n_timesteps",
    *(f"env_kwargs.{name}" for name in ("seed", "horizon", "goals", "reward_version")),
    *("precision", "compile", "cuda_graphs", "buffer_device", "num_threads"),
)


class Budget(NamedTuple):
    """How long a run learns: environment steps over all tasks or, where it has minutes, so long."""

    steps: int
    minutes: float | None = None

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.minutes is None else f"{self.minutes:g} minutes"


class Setting(NamedTuple):
    """What a run was told, and how its score came about; None is what its manifest does not say.

    :param budget: how long it learned
    :param horizon: of its episodes
    :param goals: that it learned with
    :param reward_version: of Meta-World
    :param parameters: of actor and critics together
    :param begins: "from scratch", or from what kind of model
    :param hyperparams: name and value of all others, see :func:`flattened`
    :param evaluation: how the score was found; None also for a run without one
    :param tasks: of the set, which may have had others in another version
    """

    budget: Budget
    horizon: Any
    goals: Any
    reward_version: Any
    parameters: int | None
    begins: str
    hyperparams: tuple[tuple[str, str], ...] | None
    evaluation: str | None = None
    tasks: str | None = None


#: How each of them reads.
_TEXTS = dict(
    budget="{}",
    horizon="horizon {}",
    goals="{} goals",
    reward_version="rewards {}",
    parameters="{:,} parameters",
    begins="{}",
    evaluation="{}",
    tasks="tasks {}",
)


def flattened(hyperparams: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...] | None:
    """Hyperparameters as a setting has them: ``policy_kwargs.net_arch`` and its value, as text.

    :param hyperparams: of ``run.json``
    """
    if hyperparams is None:
        return None
    return tuple(sorted((name, value) for name, value in _flat(hyperparams) if not _is_apart(name)))


def _is_apart(name: str) -> bool:
    return re.sub(r"^(source\.)+", "", name) in _APART  # of the run that was adapted, too, and of that one's source


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", str(value)


def differences(setting: Setting, settings: Iterable[Setting]) -> list[str]:
    """What is not the same in all settings, as it is in this one.

    :param setting: one of them
    :param settings: of which none is named twice
    """
    settings = list(settings)
    texts = []
    for name, text in _TEXTS.items():
        found = {getattr(each, name) for each in settings if name != "evaluation" or each.evaluation is not None}
        if len(found) > 1 and (value := getattr(setting, name)) in found:
            texts.append(f"unknown {name.replace('_', ' ')}" if value is None else text.format(value))
    known = [dict(each.hyperparams) for each in settings if each.hyperparams is not None]
    if 0 < len(known) < len(settings):  # runs of earlier versions
        texts.append(f"hyperparameters {'un' if setting.hyperparams is None else ''}known")
    own = dict(setting.hyperparams or ())
    names = sorted({name for each in known for name in each} if own else ())
    different = [name for name in names if len({each.get(name) for each in known}) > 1]
    return [*texts, *(f"{_short(name)} {own.get(name, 'by default')}" for name in different)]


def _short(name: str) -> str:
    of_source = "the source's " if name.startswith("source.") else ""
    return of_source + name.rpartition(".")[2]
