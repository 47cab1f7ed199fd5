"""The one signature that every multi-task network has."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError

SelfNetwork = TypeVar("SelfNetwork", bound="MultiTaskNetwork")

#: No network is wider or deeper: a slip of the keyboard must not fill the memory.
LARGEST = 65_536


class MultiTaskNetwork(nn.Module, ABC):
    """A network of a state (or state and action) and a task, E independent copies of it at once.

    Every parameter has the ensemble as its leading axis, and no member reads another's: E critics in one
    network equal E networks. Subclasses take their own options as keyword arguments beside these four.

    :param input_dim: width of ``inputs``: of the state, or of state and action for a critic
    :param output_dim: width of the output
    :param num_tasks: M, the number of tasks
    :param ensemble_size: E, the number of independent copies
    :raises ConfigurationError: if a size is not a positive integer, or for an option that does not fit
    """

    #: Whether a CUDA graph can replay a pass: it never waits for the device, and nothing that it reads in Python
    #: changes from one pass to the next. Each class says so for itself, since a subclass may do what it likes.
    capturable: ClassVar[bool] = False

    #: The arguments of a :class:`.TunableParts`: which parameters are those of a task, and which ones the words of
    #: ``model.adapt(tune=...)`` mean. A network that says nothing cannot be adapted to new tasks.
    tunable_parts: ClassVar[dict[str, Any]] = {}
    #: Whether a row of ``task`` may be a mixture of tasks, and each of them then counts by its share.
    mixes_tasks: ClassVar[bool] = True
    #: Whether a pass looks at :attr:`in_task_order`, to evaluate what each task has for itself for its own rows alone.
    #: Each class says so for itself: a subclass may hand other tasks on than those that it was given.
    reads_task_order: ClassVar[bool] = False
    #: Whether each batch now has as many rows of each of the M tasks, in the order of the tasks.
    in_task_order: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.capturable = vars(cls).get("capturable", False)
        cls.reads_task_order = vars(cls).get("reads_task_order", False)

    def __init__(self, input_dim: int, output_dim: int, num_tasks: int, *, ensemble_size: int = 1) -> None:
        super().__init__()
        require_positive(input_dim=input_dim, output_dim=output_dim, num_tasks=num_tasks, ensemble_size=ensemble_size)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.num_tasks = num_tasks
        self.ensemble_size = ensemble_size

    @property
    def last_shared_layer(self) -> nn.Module | None:
        """The last linear layer, or batch of them, whose weights all tasks share: where GradNorm measures gradients.

        From ``[*prefix, B, in]`` to ``[*batch_shape, B, out]``, where the prefix is the beginning of the batch's shape,
        and called once in a pass. None where there is none.
        """
        return None

    @abstractmethod
    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        """Evaluate all members.

        :param inputs: ``[B, input_dim]``, the same for all members, or ``[E, B, input_dim]``
        :param task: ``[B, M]``, one-hot rows, or (:attr:`mixes_tasks`) any that sum to 1
        :return: ``[E, B, output_dim]``
        """

    def train(self: SelfNetwork, mode: bool = True) -> SelfNetwork:
        """As in torch, but at once where the mode is that already.

        SB3 sets it at every action, and a walk through all layers takes a twentieth of the time that acting does.
        """
        return self if self.training is mode else super().train(mode)

    def auxiliary_loss(self, losses: Tensor, task: Tensor) -> Tensor | None:
        """A loss of the network's own, to be minimised along with the loss of its output.

        Called once for each forward pass of a training step, after it.

        :param losses: ``[E, B]``, what each sample of that pass cost each member, without gradient
        :param task: ``[B, M]``, the tasks of that pass
        :return: a scalar, or None where a network has no such loss
        """
        return None

    def clip_grad_norm_(self, max_norm: float) -> None:
        """Scale the gradients of each member, by itself, to a norm of at most ``max_norm``.

        :param max_norm: the largest Euclidean norm over all of a member's parameters
        """
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        norms = th.stack([th.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])  # [parameters, E]
        norm = th.linalg.vector_norm(norms, dim=0)
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))


@contextlib.contextmanager
def in_task_order(networks: Sequence[MultiTaskNetwork]) -> Iterator[None]:
    """For evaluating networks on batches that have as many rows of each task, in the order of the tasks.

    Nothing tests that they have: on a GPU the host would have to wait, and compiled code cannot ask.

    :param networks: those that do not look at it stay as they are
    """
    told = [network for network in networks if network.reads_task_order]
    for network in told:
        network.in_task_order = True
    try:
        yield
    finally:
        for network in told:
            network.in_task_order = False


def require_positive(**sizes: object) -> None:
    """Refuse a size that is not a positive integer, or larger than any network is.

    :raises ConfigurationError: naming the size and the value
    """
    for name, value in sizes.items():
        require_integer(name, value, 1, LARGEST)


def require_widths(name: str, widths: object, at_least: int = 0) -> tuple[int, ...]:
    """Refuse what is not a list of layer widths.

    :param at_least: how many there must be
    :return: the widths
    :raises ConfigurationError: naming the option and the value
    """
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Sequence):
        raise ConfigurationError(f"{name} must be a list of layer widths, not {widths!r}.")
    for width in widths:
        require_positive(**{f"Each width in {name}": width})
    if len(widths) < at_least:
        raise ConfigurationError(f"{name} needs at least {at_least} layer, not {widths!r}.")
    return tuple(widths)


def with_task(inputs: Tensor, task: Tensor) -> Tensor:
    """Append the task to the inputs.

    :param inputs: ``[B, in]`` or ``[E, B, in]``
    :param task: ``[B, M]``
    :return: ``[B, in + M]`` or ``[E, B, in + M]``
    """
    return th.cat([inputs, task.expand(*inputs.shape[:-1], -1)], -1)
