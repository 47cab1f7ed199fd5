"""Trained policies that come with the package, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3.common.type_aliases import GymEnv

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.checks import require_names
from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import as_path, read_json, write_text
from sb3_softmod.common.version import __version__
from sb3_softmod.envs.make import as_env
from sb3_softmod.saving.plain_models import save_plain

#: Where they are: of each a zip file and a card.
FOLDER = Path(__file__).parents[1] / "pretrained_models"

#: What a card must say, and of which type.
_NEEDED = {"task_set": str, "env_kwargs": dict, "success": dict}


def pretrained(
    name: str, env: GymEnv | VectorEnv | str | Sequence[str] | None = None, device: th.device | str = "auto"
) -> MultiTaskSAC:
    """A model that was trained, and comes with the package.

    It acts and is evaluated at once: ``evaluate_tasks(pretrained("MT10"), "MT10")``. As of any model, ``predict`` takes
    observations that are normalised as in training; with an ``env``, ``get_env()`` sends such, and ``learn`` goes on
    with new optimizers and an empty replay buffer. Loading runs no code from the file.

    :param name: see :func:`pretrained_names`
    :param env: to go on learning; an env, or the name of a Meta-World task or set, with the goals of the training
    :param device: where to load to
    :raises ConfigurationError: for an unknown name, with those that there are, an env of other tasks, or a name
        where the envs of the training were made with more than a seed
    :raises FileError: naming the file, if it is broken
    """
    path, made_with = _file(name, "zip"), pretrained_card(name)["env_kwargs"]
    seed = made_with.get("seed")
    if isinstance(env, (str, list, tuple)) and set(made_with) - {"seed"}:
        raise ConfigurationError(
            f"{name} was trained in envs made with {made_with}: pass an env that is made with them."
        )
    model = MultiTaskSAC.load(path, env=as_env(env, seed), device=device, safe=True)
    model.seed = seed  # envs that are made for it have the goals of its training
    return model


def pretrained_names() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.zip"))


def pretrained_card(name: str) -> dict[str, Any]:
    """What is known of a model that comes with the package: tasks, training, success.

    :param name: see :func:`pretrained_names`
    :return: at least ``task_set``, ``env_kwargs`` (what the envs of its training were made with, the seed of the goals
        among them), ``success`` (of each task), ``date``, ``package_version`` and ``parameters``
    :raises ConfigurationError: for an unknown name, with those that there are
    :raises FileError: naming the file, if it is broken
    """
    path = _file(name, "json")
    card = read_json(path)
    if problem := _problem(card):
        raise FileError(f"{path} is broken: {problem}.")
    return card


def save_pretrained(model: MultiTaskSAC, path: str | Path, card: Mapping[str, Any]) -> list[Path]:
    """Write a model as :func:`pretrained` reads it: weights, arguments and statistics of the observations, no
    optimizers, in a zip file without code; and its card beside it, ``.json``.

    :param model: with a policy of this package
    :param path: of the zip file
    :param card: see :func:`pretrained_card`; ``date``, ``package_version``, ``tasks`` and ``parameters`` are added
    :return: both files
    :raises ConfigurationError: for a card that lacks something, or a model that plain text cannot hold
    :raises FileError: if a file cannot be written
    """
    require_names("card", card)
    added = {
        "tasks": list(model.task_names),
        "parameters": {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in (("actor", model.actor), ("critic", model.critic))
        },
        "date": date.today().isoformat(),
        "package_version": __version__,
    }
    card = {**card, **added}
    if problem := _problem(card):
        raise ConfigurationError(f"The card of a model is not complete: {problem}.")
    try:
        text = json.dumps(card, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The card of a model must be plain data: {error}.") from error
    path = as_path(path).with_suffix(".zip")
    save_plain(model, path)
    return [path, write_text(path.with_suffix(".json"), text)]


def _file(name: Any, suffix: str) -> Path:
    names = pretrained_names()
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "none comes with this version"
        raise ConfigurationError(f"There is no pretrained model {name!r}: {there}.")
    return FOLDER / f"{name}.{suffix}"


def _problem(card: Mapping[str, Any]) -> str:
    """What a card does not say, or says wrongly; nothing for a good one."""
    wrong = [name for name, kind in _NEEDED.items() if not isinstance(card.get(name), kind)]
    if wrong:
        return f"it needs {', '.join(f'{name} ({_NEEDED[name].__name__})' for name in wrong)}"
    tasks = set(card["tasks"]) if isinstance(card.get("tasks"), list) else set()
    return "" if set(card["success"]) == tasks else "success must have a rate for each of its tasks"
