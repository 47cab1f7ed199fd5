"""The parameter names of the authors' released code, and the way from them and back."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError, FileError, NonFiniteError
from sb3_softmod.common.files import as_path

_OFFICIAL_OPTIONS: dict[str, Any] = dict(
    routing_history="all_probabilities",
    activate_embedding=True,
    module_activation="after_mixing",
    head="routed",
    normalization=None,
)

#: A :class:`.SoftModularNetwork`, which imports this module.
Network = Any


def read(params: Mapping[str, Any] | str | Path) -> dict[str, Tensor]:
    """The authors' parameters as float32 tensors.

    :param params: names to arrays or tensors, or the path of a ``.pth`` state dict
    :raises ConfigurationError: for anything but a mapping of names to arrays
    :raises FileError: for a file that cannot be read, or that would run code
    :raises NonFiniteError: naming the parameter that holds NaN or infinity
    """
    source = "params"
    if isinstance(params, (str, Path)):
        source = str(params)
        params = _load(as_path(params))
    if not isinstance(params, Mapping) or not params:
        raise ConfigurationError(
            f"{source} must map the authors' parameter names to arrays, not {type(params).__name__}."
        )
    arrays = {}
    for name, value in params.items():
        try:
            arrays[str(name)] = array = th.as_tensor(value, dtype=th.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"{source}: the parameter {name!r} is no array of numbers ({error}).") from error
        if not array.isfinite().all():
            raise NonFiniteError(f"{source}: the parameter {name!r} holds NaN or infinity.")
    return arrays


def _load(path: Path) -> Any:
    """What a file holds, without running code from it."""
    try:
        return th.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise FileError(f"{path} is broken, or no file of weights that torch.save wrote ({reason}).") from error


def infer_sizes(arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of :class:`.SoftModularNetwork` that the shapes of the authors' parameters show.

    :raises ConfigurationError: if a parameter that a size is read from is missing
    """

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in arrays)

    def shape(name: str) -> tuple[int, int]:
        if f"{name}.weight" not in arrays:
            raise ConfigurationError(
                f"The parameter '{name}.weight' is missing: not the authors' soft-modular network."
            )
        weight = arrays[f"{name}.weight"]
        if weight.dim() != 2:
            raise ConfigurationError(f"The parameter '{name}.weight' has shape {tuple(weight.shape)}, not two axes.")
        out_features, in_features = weight.shape
        return out_features, in_features

    input_dim = shape("base.fc0")[1]
    hidden = [shape(f"base.fc{k}")[0] for k in range(count(r"base\.fc\d+\.weight"))]
    shape("module_1_0")  # without a second layer of modules there is nothing to route
    depth = count(r"gating_fc_\d+\.weight")
    return dict(
        input_dim=input_dim,
        output_dim=shape("last")[0],
        num_tasks=shape("em_base.fc0")[1],
        num_layers=count(r"module_\d+_0\.weight"),
        num_modules=count(r"module_0_\d+\.weight"),
        module_dim=shape("module_0_0")[0],
        embedding_dim=hidden[-1],
        state_hidden=hidden[:-1],
        num_routing_layers=depth,
        routing_dim=shape("gating_fc_0")[0] if depth else None,
    )


def load_into(network: Network, arrays: Mapping[str, Tensor]) -> None:
    """Copy the authors' parameters into every member of a network of their sizes.

    :raises ConfigurationError: naming the parameter that is missing, left over or of the wrong shape
    """
    left = dict(arrays)
    with th.no_grad():
        for name, parameter in _named_views(network):
            if name not in left:
                raise ConfigurationError(f"The parameter {name!r} is missing.")
            value = left.pop(name)
            if parameter.shape[1:] != value.shape:
                raise ConfigurationError(
                    f"The parameter {name!r} has shape {tuple(value.shape)}, expected {tuple(parameter.shape[1:])}."
                )
            parameter.copy_(value)
    if left:
        raise ConfigurationError(f"Parameters that the network has no place for: {', '.join(sorted(left))}.")


def export(network: Network, member: int) -> dict[str, Tensor]:
    """The parameters of one member under the authors' names.

    :raises ConfigurationError: if the network is not of the official variant
    """
    require_integer("member", member, 0, network.ensemble_size - 1)
    for option, official in _OFFICIAL_OPTIONS.items():
        value = getattr(network.options, option)
        if value != official:
            raise ConfigurationError(f"The authors' code has {option}={official!r}; this network has {value!r}.")
    return {name: parameter[member].detach().clone() for name, parameter in _named_views(network)}


def _named_views(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Each of the authors' names with the view ``[E, ...]`` of our parameters that it stands for."""
    for name, layer, module in _named_layers(network):
        for kind in ("weight", "bias"):
            parameter = getattr(layer, kind)
            yield f"{name}.{kind}", parameter if module is None else parameter[:, module]


def _named_layers(network: Network) -> Iterator[tuple[str, nn.Module, int | None]]:
    options = network.options
    last = options.num_layers - 1
    for k, layer in enumerate(network.state_encoder.layers):
        yield f"base.fc{k}", layer, None
    yield "em_base.fc0", network.task_encoder, None
    for k, layer in enumerate(network.routing_encoder):
        yield f"gating_fc_{k}", layer, None
    for k, layer in enumerate(network.routing_down):
        yield "gating_weight_last" if k == last else f"gating_weight_fc_{k}", layer, None
    for k, layer in enumerate(network.routing_up, start=1):
        yield "gating_weight_cond_last" if k == last else f"gating_weight_cond_fc_{k}", layer, None
    for k, layer in enumerate(network.module_layers):
        for j in range(options.num_modules):
            yield f"module_{k}_{j}", layer, j
    yield "last", network.head, None
