"""MOORE: a mixture of orthogonal experts (Hendawy et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.networks.base import MultiTaskNetwork, require_positive, require_widths
from sb3_softmod.networks.layers import BatchedMLP, at_least_float32
from sb3_softmod.networks.multi_head import TaskHeads


class MOORENetwork(MultiTaskNetwork):
    r"""K experts whose features are made orthonormal, combined by task weights, and a head for each task:
    :math:`\mathrm{head}_t(\tanh(\sum_k w_{tk}\,u_k(s)))`.

    :param num_experts: K, at most the last width (the authors: 4 on MT10, 6 on MT50)
    :param net_arch: widths of the layers of each expert, the last that of its features
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    reads_task_order = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"task_weights": 1, "heads": 1},
        words={"routing": ("task_weights",), "task": ("task_weights",), "heads": ("heads",)},
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        num_experts: int = 4,
        net_arch: Sequence[int] = (400, 400, 400),
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(num_experts=num_experts)
        hidden = require_widths("net_arch", net_arch, at_least=1)
        if num_experts > hidden[-1]:
            raise ConfigurationError(
                f"num_experts={num_experts} features of width {hidden[-1]} (the last of net_arch) cannot be orthogonal."
            )
        self.experts = BatchedMLP((ensemble_size, num_experts), (input_dim, *hidden))
        self.task_weights = nn.Parameter(th.randn(ensemble_size, num_tasks, num_experts) / math.sqrt(num_experts))
        self.heads = TaskHeads(ensemble_size, num_tasks, hidden[-1], output_dim)

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.experts.layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        combined = th.einsum("ebk,ekbd->ebd", task @ self.task_weights, self.features(inputs))
        return self.heads(th.tanh(combined), task, self.in_task_order)

    def features(self, inputs: Tensor) -> Tensor:
        """The experts' features, orthonormal in each row.

        :param inputs: ``[B, input_dim]`` or ``[E, B, input_dim]``
        :return: ``[E, K, B, d]``
        """
        return orthonormalize(at_least_float32(self.experts(inputs)))


def orthonormalize(vectors: Tensor) -> Tensor:
    """Gram-Schmidt along the second axis, each projection twice: once leaves rounding errors where vectors are close.

    :param vectors: ``[E, K, B, d]``
    :return: the same shape; along K orthonormal
    """
    basis: list[Tensor] = []
    for vector in vectors.unbind(1):
        for direction in basis + basis:
            vector = vector - (vector * direction).sum(-1, keepdim=True) * direction
        basis.append(vector / vector.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    return th.stack(basis, 1)
