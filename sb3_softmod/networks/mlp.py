"""MT-SAC: one perceptron for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from sb3_softmod.networks.base import MultiTaskNetwork, require_widths, with_task
from sb3_softmod.networks.layers import BatchedMLP, Normalization


class MlpNetwork(MultiTaskNetwork):
    """A perceptron of the state with the one-hot task appended (MT-SAC of Yu et al. 2019, Meta-World).

    :param net_arch: widths of the hidden layers
    :param normalization: "layer": layer normalisation before each ReLU, without learned scale and shift
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        reads_task=("mlp.layers.0",),
        words={"task": ("mlp.layers.0.task_weight",), "heads": ("mlp.layers.-1",)},
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
        hidden = require_widths("net_arch", net_arch)
        self.mlp = BatchedMLP(
            (ensemble_size,), (input_dim + num_tasks, *hidden, output_dim), normalization=normalization
        )

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.mlp.layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        return self.mlp(with_task(inputs, task))
