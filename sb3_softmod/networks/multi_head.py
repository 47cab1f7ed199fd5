"""MT-MH-SAC: a shared trunk with a head for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.networks.base import MultiTaskNetwork, require_widths, with_task
from sb3_softmod.networks.layers import BatchedLinear, BatchedMLP, Normalization, normalize, relu


class MultiHeadNetwork(MultiTaskNetwork):
    """MT-SAC with a last layer for each task (MT-MH-SAC of Yu et al. 2019, Meta-World).

    With one task it is :class:`.MlpNetwork`.

    :param net_arch: widths of the trunk's layers; the trunk reads the state and the one-hot task
    :param normalization: "layer": layer normalisation before each ReLU, without learned scale and shift
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    reads_task_order = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"heads": 1},
        reads_task=("trunk.layers.0",),
        words={"task": ("trunk.layers.0.task_weight",), "heads": ("heads",)},
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        net_arch: Sequence[int] = (400, 400, 400),
        normalization: Normalization | None = None,
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        hidden = require_widths("net_arch", net_arch, at_least=1)
        self.trunk = BatchedMLP((ensemble_size,), (input_dim + num_tasks, *hidden), normalization=normalization)
        self.heads = TaskHeads(ensemble_size, num_tasks, hidden[-1], output_dim)

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.trunk.layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        features = normalize(self.trunk(with_task(inputs, task)), self.trunk.normalization)
        return self.heads(relu(features), task, self.in_task_order)


class TaskHeads(BatchedLinear):
    """A linear layer for each task.

    :param ensemble_size: E
    :param num_tasks: M
    :param in_features: width of the input
    :param out_features: width of the output
    """

    def __init__(self, ensemble_size: int, num_tasks: int, in_features: int, out_features: int) -> None:
        super().__init__((ensemble_size, num_tasks), in_features, out_features)

    def forward(self, inputs: Tensor, task: Tensor, in_task_order: bool = False) -> Tensor:  # type: ignore[override]
        """Apply to each row the layer of its task.

        :param inputs: ``[E, B, in]``
        :param task: ``[B, M]``
        :param in_task_order: whether there are as many rows of each task, in the order of the tasks; else all layers
            are evaluated for every row, as one product
        :return: ``[E, B, out]``
        """
        if in_task_order:
            return super().forward(inputs.unflatten(1, (task.shape[1], -1))).flatten(1, 2)
        return th.einsum("bm,embo->ebo", task, super().forward(inputs))
