"""Models as files in which nothing is pickled: what acting and going on to learn need, without the optimizers.

Such a file is a zip of SB3's kind, whose entry "data" is plain JSON alone: policy, arguments, spaces, task names and
statistics of the observations. The target critics are left out: they begin as the critics are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import recursive_getattr, save_to_zip_file

from sb3_softmod.common.checks import arguments_of, require_choice
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.saved_files import writing
from sb3_softmod.envs.normalization_statistics import plain_statistics
from sb3_softmod.policies import POLICIES
from sb3_softmod.saving.loading import ATTRIBUTES
from sb3_softmod.saving.models import is_plain

#: Of these files; one more whenever older code could not read them rightly.
FORMAT = 1
#: By which a file is known to be one of them.
_MARK = "plain_format"
#: Arguments that no file gives: of this machine, of this process, or made from other arguments.
_NOT_OF_A_FILE = {
    *("self", "policy", "env", "device", "seed", "verbose", "tensorboard_log", "_init_setup_model"),
    *("precision", "compile", "cuda_graphs", "buffer_device", "buffer_size", "overlap", "stats_window_size"),
    *("replay_buffer_class", "replay_buffer_kwargs", "action_noise", "train_freq", "num_tasks"),
}
#: Types of spaces.
_FLOATS = ("float32", "float64")
#: How far the training was.
COUNTS = ("num_timesteps", "_n_updates", "_episode_num", "nonfinite_updates")
_TARGET = "critic_target."


def safe_arguments(cls: type, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class that a file gives where it has them in plain text and the caller does not.

    :param cls: a :class:`.SavingSAC`
    :param facts: of :func:`.saved_facts`
    """
    attributes = dict(zip(_names(cls), _attributes(cls), strict=True))
    return {name: facts[own] for name, own in attributes.items() if own in facts and is_plain(facts[own])}


def save_plain(model: Any, path: str | Path) -> None:
    """Save a model so that it can be loaded without running code from the file, and without env or policy.

    :param model: a :class:`.SavingSAC` with a policy of this package
    :param path: of the file
    :raises ConfigurationError: for what plain text cannot hold: another policy, or an argument that is an object
    :raises FileError: if it cannot be written; a file that was there then stays as it was
    :raises NonFiniteError: see :meth:`.SavingSAC.check_updates`; nothing is then written
    """
    model.check_updates()
    policy = type(model.policy).__name__
    if POLICIES.get(policy) is not type(model.policy):
        raise ConfigurationError(f"Only a policy of this package can be saved in plain text, not {policy}.")
    statistics = model.observation_statistics()
    data = {
        _MARK: FORMAT,
        "policy_class": policy,
        "verbose": 0,
        "task_names": list(model.task_names),
        "num_tasks": model.num_tasks,
        **{name: _plain_space(name, getattr(model, name)) for name in ("observation_space", "action_space")},
        "normalization": None if statistics is None else plain_statistics(statistics),
        **{name: getattr(model, name) for name in (*_attributes(type(model)), *COUNTS)},
        "largest_returns": None if model.reward_scale is None else model.reward_scale.largest_returns().tolist(),
        "loss_weighting_progress": None if model.learned_weights is None else model.learned_weights.progress(),
        "learning_rate": float(model.lr_schedule(1.0)),  # as a schedule begins: RL Zoo makes one of any number
    }
    for name, value in data.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"A file in plain text cannot hold {name}={value!r} ({error}).") from error
    weights = {key: value for key, value in model.policy.state_dict().items() if not key.startswith(_TARGET)}
    variables = {name: recursive_getattr(model, name) for name in model._get_torch_save_params()[1]}
    variables = {name: value.detach() for name, value in variables.items() if isinstance(value, th.Tensor)}
    with writing(path, "zip") as file:
        save_to_zip_file(file, data=data, params={"policy": weights}, pytorch_variables=variables)


def is_plain_model(facts: Mapping[str, Any]) -> bool:
    """Whether a file is one of :func:`save_plain`.

    :param facts: of :func:`.saved_facts`
    :raises ConfigurationError: for one that a newer version wrote
    """
    if _MARK not in facts:
        return False
    if facts[_MARK] != FORMAT:
        raise ConfigurationError(f"it is of format {facts[_MARK]!r}, but this version reads format {FORMAT}.")
    return True


def space_from_plain(name: str, plain: Any) -> spaces.Box:
    """A space of a file of :func:`save_plain`.

    :param name: "observation_space" or "action_space"
    :raises ConfigurationError: for what is none
    """
    try:
        require_choice("dtype", dtype := plain.get("dtype", "float32"), _FLOATS)
        low, high = (np.array(plain[bound], dtype) for bound in ("low", "high"))
        if low.ndim != 1 or low.shape != high.shape or np.isnan([low, high]).any():
            raise ValueError(f"bounds of the shapes {low.shape} and {high.shape}")
        return spaces.Box(low, high, dtype=np.dtype(dtype).type)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"its {name} is none ({error}).") from error


def task_names_of_file(facts: Mapping[str, Any]) -> list[str]:
    """The names of the tasks in a file of :func:`save_plain`.

    :raises ConfigurationError: for what are none
    """
    names = facts.get("task_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"its task_names are none: {names!r}.")
    if len(set(names)) != facts.get("num_tasks"):
        raise ConfigurationError(f"its task_names are not those of {facts.get('num_tasks')!r} tasks: {names!r}.")
    return names


def completed(parameters: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The parameters of a file of :func:`save_plain` with what it leaves out: optimizers at their beginning, and target
    critics like the critics.

    :param parameters: state dicts, of :func:`.saved_weights`
    :param model: that is to have them
    """
    critic = _TARGET.replace("_target", "")
    weights: dict[str, th.Tensor] = dict(parameters["policy"])
    targets = {key.replace(critic, _TARGET, 1): value for key, value in weights.items() if key.startswith(critic)}
    return {**model.get_parameters(), **parameters, "policy": {**weights, **targets}}


def _names(cls: type) -> list[str]:
    return [name for name in arguments_of(cls) if name not in _NOT_OF_A_FILE]


def _attributes(cls: type) -> list[str]:
    return [ATTRIBUTES.get(name, name) for name in _names(cls)]


def _plain_space(name: str, space: Any) -> dict[str, Any]:
    if not isinstance(space, spaces.Box) or str(space.dtype) not in _FLOATS or len(space.shape) != 1:
        raise ConfigurationError(f"A file in plain text cannot hold the {name} {space}: only a flat Box of floats.")
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}
