"""PaCo: the parameters of each task are a learned combination of shared sets (Sun et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.networks.base import MultiTaskNetwork, require_positive, require_widths
from sb3_softmod.networks.layers import BatchedMLP, relu


class PaCoNetwork(MultiTaskNetwork):
    r"""A perceptron of the state with the parameters :math:`\theta_t = \sum_k w_{tk}\,\phi_k` for task t.

    Layer by layer that is :math:`\sum_k w_{tk} (W_k x + b_k)`, so that no task's parameters are ever formed.

    Differs from the authors' code: each member has weights w of its own, where their actor and critics share them; the
    sets start different from each other; and no task's w is reset when its loss explodes.

    :param num_parameter_sets: K (the authors: 5 on MT10)
    :param net_arch: widths of the hidden layers
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"composition": 1},
        words={"routing": ("composition",), "task": ("composition",), "heads": ("parameter_sets.-1",)},
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        num_parameter_sets: int = 5,
        net_arch: Sequence[int] = (400, 400, 400),
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(num_parameter_sets=num_parameter_sets)
        E, K = ensemble_size, num_parameter_sets
        widths = (input_dim, *require_widths("net_arch", net_arch), output_dim)
        self.parameter_sets = BatchedMLP((E, K), widths).layers
        # Of variance 1 / K, so that a combination of the sets is as large as each of them.
        self.composition = nn.Parameter(th.randn(E, num_tasks, K) / math.sqrt(K))

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.parameter_sets[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        weights = task @ self.composition  # [E, B, K]
        out = inputs
        for k, layer in enumerate(self.parameter_sets):
            out = th.einsum("ebk,ekbd->ebd", weights, layer(relu(out) if k else out))
        return out
