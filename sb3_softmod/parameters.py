"""Whether saved parameters fit a model, told before any of them is copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch as th

from sb3_softmod.errors import ConfigurationError

#: So many parameters that do not fit are named.
_NAMED = 4


def check_parameters(own: Mapping[str, Any], given: Any, exact_match: bool) -> None:
    """Refuse parameters that a model has no place for.

    :param own: the model's networks and optimizers, by name
    :param given: a state dict for each
    :param exact_match: whether nothing may be missing
    :raises ConfigurationError: naming what does not fit
    """
    if not isinstance(given, Mapping) or not all(isinstance(state, Mapping) for state in given.values()):
        raise ConfigurationError(f"Parameters are a state dict for each of {', '.join(own)}.")
    problems = _differences(own, given, exact_match)
    for name in given.keys() & own.keys():
        if isinstance(own[name], th.optim.Optimizer):
            problems += _of_optimizer(name, own[name], given[name])
        else:
            problems += _of_network(name, own[name].state_dict(), given[name], exact_match)
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ConfigurationError(f"The parameters do not fit this model: {'; '.join(problems[:_NAMED])}{more}.")


def _differences(own: Iterable[str], given: Iterable[str], all_needed: bool) -> list[str]:
    missing = sorted(set(own) - set(given)) if all_needed else []
    unknown = sorted(map(str, set(given) - set(own)))
    return [f"{name} is missing" for name in missing] + [f"there is no {name}" for name in unknown]


def _of_network(name: str, own: Mapping[str, th.Tensor], given: Mapping[str, Any], exact_match: bool) -> list[str]:
    # As in torch, parameters that are left over do no harm where not everything has to match.
    known = given if exact_match else given.keys() & own.keys()
    problems = [f"in {name}, {what}" for what in _differences(own, known, exact_match)]
    for key in sorted(own.keys() & given.keys()):
        shape = tuple(given[key].shape) if isinstance(given[key], th.Tensor) else None
        if shape != tuple(own[key].shape):
            what = "no tensor" if shape is None else f"of shape {shape}"
            problems.append(f"{name}.{key} is {what}, not of shape {tuple(own[key].shape)}")
    return problems


def _of_optimizer(name: str, own: th.optim.Optimizer, given: Mapping[str, Any]) -> list[str]:
    """An optimizer takes any state, and fails in its next step."""
    parameters = [group["params"] for group in own.param_groups]
    try:
        indices = [group["params"] for group in given["param_groups"]]
        same = [len(group) for group in indices] == [len(group) for group in parameters]
        shapes = {
            index: parameter.shape
            for group, of_group in zip(indices, parameters, strict=False)
            for index, parameter in zip(group, of_group, strict=False)
        }
        for index, state in given["state"].items():
            tensors = [value for value in state.values() if isinstance(value, th.Tensor) and value.dim()]
            same &= all(tensor.shape == shapes.get(index) for tensor in tensors)
    except (AttributeError, KeyError, TypeError):
        same = False
    return [] if same else [f"{name} is the state of another optimizer"]
