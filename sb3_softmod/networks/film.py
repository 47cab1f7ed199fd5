"""FiLM: feature-wise linear modulation by the task (Perez et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.networks.base import MultiTaskNetwork, require_positive, require_widths
from sb3_softmod.networks.layers import BatchedLinear, BatchedMLP, Normalization, normalize, relu


class FiLMNetwork(MultiTaskNetwork):
    r"""A perceptron of the state whose hidden layers the task scales and shifts, unit by unit:
    :math:`\mathrm{ReLU}((1 + \gamma_l(z)) \cdot (W_l x + b_l) + \beta_l(z))`.

    :param embedding_dim: width of the task embedding that, rectified, gives all scales and shifts by one linear layer
    :param net_arch: widths of the hidden layers
    :param normalization: "layer": layer normalisation of each hidden layer, before the task scales and shifts it
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"task_embedding": 1}, words={"task": ("task_embedding",), "heads": ("layers.-1",)}
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        embedding_dim: int = 50,
        net_arch: Sequence[int] = (400, 400, 400),
        normalization: Normalization | None = None,
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(embedding_dim=embedding_dim)
        self.hidden = require_widths("net_arch", net_arch, at_least=1)
        self.task_embedding = nn.Parameter(th.randn(ensemble_size, num_tasks, embedding_dim))
        self.modulation = BatchedLinear((ensemble_size,), embedding_dim, 2 * sum(self.hidden))
        self.normalization = normalization
        widths = (input_dim, *self.hidden, output_dim)
        self.layers = BatchedMLP((ensemble_size,), widths, normalization=normalization).layers

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        modulation = self.modulation(relu(task @ self.task_embedding))
        scales, shifts = (part.split(self.hidden, -1) for part in modulation.chunk(2, -1))
        *hidden_layers, last = self.layers
        out = inputs
        for layer, scale, shift in zip(hidden_layers, scales, shifts, strict=True):
            out = relu((1 + scale) * normalize(layer(out), self.normalization) + shift)
        return last(out)
