"""Whether saved parameters fit a model, told before any of them is copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch as th

from sb3_softmod.common.errors import ConfigurationError

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
        of_index = {
            index: parameter
            for group, of_group in zip(indices, parameters, strict=False)
            for index, parameter in zip(group, of_group, strict=False)
        }
        found = {index: _shapes(state) for index, state in given["state"].items()}
        if any(shape != of_index[index].shape for index, shapes in found.items() for shape in shapes.values()):
            kept = _shapes_kept_by(own)  # by some, of another shape: a factor, a number for each row
            same &= all(shapes == kept[of_index[index]] for index, shapes in found.items())
    except (AttributeError, KeyError, TypeError):
        same = False
    return [] if same else [f"{name} is the state of another optimizer"]


def _shapes(state: Mapping[str, Any]) -> dict[str, th.Size]:
    """Of the tensors in the state of a parameter, those that are single numbers left out."""
    return {key: value.shape for key, value in state.items() if isinstance(value, th.Tensor) and value.dim()}


def _shapes_kept_by(optimizer: th.optim.Optimizer) -> dict[th.Tensor, dict[str, th.Size]]:
    """What it keeps of each parameter, as a step of a copy with gradients of zero shows."""
    trial = deepcopy(optimizer)
    own, copies = ([p for group in each.param_groups for p in group["params"]] for each in (optimizer, trial))
    for copy in copies:
        copy.grad = th.zeros_like(copy)
    trial.step()
    return {parameter: _shapes(trial.state[copy]) for parameter, copy in zip(own, copies, strict=True)}
