"""What of a network can be tuned for new tasks, by words that all networks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.networks.base import MultiTaskNetwork
from sb3_softmod.networks.layers import BatchedLinear

Tune = Literal["routing", "task", "heads", "all"]
TUNES: tuple[Tune, ...] = get_args(Tune)

#: What a :class:`SplitLinear` keeps apart for the tasks.
_TASK_WEIGHT = "task_weight"


@dataclass(frozen=True)
class TunableParts:
    """What a network says of its parameters, in the beginnings of their names; ``-1`` stands for the last of a list.

    :param by_task: what holds something for each task, to the axis of the tasks
    :param reads_task: linear layers whose last inputs are the one-hot task, apart from those of the state
    :param words: what learns, by the words of :data:`Tune` but for "all", which every network knows
    """

    by_task: Mapping[str, int] = field(default_factory=dict)
    reads_task: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, network_class: type[MultiTaskNetwork]) -> TunableParts:
        """Those of a network, its ``tunable_parts``.

        :raises ConfigurationError: for a class that says nothing
        """
        if not network_class.tunable_parts:
            raise ConfigurationError(
                f"{network_class.__name__} does not say which of its parameters are those of a task: give it "
                "tunable_parts, as the networks of this package have them."
            )
        return cls(**network_class.tunable_parts)

    def known(self) -> tuple[str, ...]:
        """The words that have a meaning here."""
        return tuple(word for word in TUNES if word in self.words or word == "all")

    def axis_of(self, name: str) -> int | None:
        """The axis of the tasks of a parameter; None for one that all tasks use."""
        if any(_is_in(name, [f"{layer}.{_TASK_WEIGHT}"]) for layer in self.reads_task):
            return -1
        return next((axis for part, axis in self.by_task.items() if _is_in(name, [part])), None)

    def tuned(self, network: nn.Module, tune: str | None) -> list[str]:
        """The parameters that a word names; none for "all", which names no part.

        :param network: whose layers that read the task are split
        """
        parts = [_resolved(network, part) for part in self.words.get(tune or "", ())]
        return [name for name, _ in network.named_parameters(remove_duplicate=False) if _is_in(name, parts)]

    def split(self, network: MultiTaskNetwork) -> MultiTaskNetwork:
        """Let the layers that read the task keep its weights apart, in place; what they compute stays, to the bit."""
        for name in self.reads_task:
            parent, _, child = name.rpartition(".")
            layer = network.get_submodule(name)
            if isinstance(layer, BatchedLinear) and not isinstance(layer, SplitLinear):
                setattr(network.get_submodule(parent), child, SplitLinear(layer, network.num_tasks))
        return network


class SplitLinear(BatchedLinear):
    """A :class:`BatchedLinear` whose weights of the state and of the task are two parameters.

    :param layer: whose last inputs are the task
    :param num_tasks: how many
    """

    def __init__(self, layer: BatchedLinear, num_tasks: int) -> None:
        nn.Module.__init__(self)
        self.batch_shape = layer.batch_shape
        self.state_weight = nn.Parameter(layer.weight.detach()[..., :-num_tasks].clone())
        self.task_weight = nn.Parameter(layer.weight.detach()[..., -num_tasks:].clone())
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[*batch_shape, out, in]``"""
        return th.cat([self.state_weight, self.task_weight], -1)


def require_tune(tune: Any, network_class: type[MultiTaskNetwork], owner: str) -> None:
    """Refuse a word that has no meaning for a network.

    :param owner: the name of the policy
    :raises ConfigurationError: with the words that have one
    """
    known = TunableParts.of(network_class).known()
    if tune not in known:
        what = "has no meaning for" if tune in TUNES else "is none of the parts of"
        raise ConfigurationError(f"tune={tune!r} {what} {owner}: take {', '.join(map(repr, known))}.")


def _is_in(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _resolved(network: nn.Module, part: str) -> str:
    """The name of a part, with the number of the last layer in place of -1."""
    stem, last, rest = part.partition(".-1")
    return f"{stem}.{len(network.get_submodule(stem)) - 1}{rest}" if last else part  # type: ignore[arg-type]
