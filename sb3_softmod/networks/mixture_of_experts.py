"""Mix-Expert: several experts and a network that mixes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.networks.base import MultiTaskNetwork, require_positive, require_widths, with_task
from sb3_softmod.networks.layers import BatchedMLP, Normalization, softmax


class MixtureOfExpertsNetwork(MultiTaskNetwork):
    r"""K perceptrons of MT-SAC's shape, mixed by a gating network (Jacobs et al. 1991):
    :math:`\sum_k g_k(s, z)\,\mathrm{expert}_k(s, z)`, :math:`g` a softmax.

    :param num_experts: K
    :param net_arch: widths of the hidden layers of each expert
    :param gating_arch: widths of the hidden layers of the gating network, of which the paper says nothing
    :param normalization: "layer": layer normalisation before each ReLU, without learned scale and shift
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        reads_task=("experts.layers.0", "gating.layers.0"),
        words={
            "routing": ("gating",),
            "task": ("experts.layers.0.task_weight", "gating.layers.0.task_weight"),
            "heads": ("experts.layers.-1",),
        },
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        num_experts: int = 4,
        net_arch: Sequence[int] = (400, 400, 400),
        gating_arch: Sequence[int] = (400,),
        normalization: Normalization | None = None,
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(num_experts=num_experts)
        width = input_dim + num_tasks
        experts = (width, *require_widths("net_arch", net_arch), output_dim)
        gating = (width, *require_widths("gating_arch", gating_arch), num_experts)
        self.experts = BatchedMLP((ensemble_size, num_experts), experts, normalization=normalization)
        self.gating = BatchedMLP((ensemble_size,), gating, normalization=normalization)

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.experts.layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        outputs = self.experts(with_task(inputs, task))
        return th.einsum("ebk,ekbo->ebo", self.gates(inputs, task), outputs)

    def gates(self, inputs: Tensor, task: Tensor) -> Tensor:
        """How much each expert counts.

        :param inputs: ``[B, input_dim]`` or ``[E, B, input_dim]``
        :param task: ``[B, M]``
        :return: ``[E, B, K]``, rows that sum to 1
        """
        return softmax(self.gating(with_task(inputs, task)))
