"""Single-task SAC: a perceptron of its own for each task, all of them one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor
from torch.nn import functional as F

from sb3_softmod.networks.base import MultiTaskNetwork, require_widths
from sb3_softmod.networks.layers import BatchedMLP, Normalization


class SingleTaskNetwork(MultiTaskNetwork):
    """M perceptrons that share nothing: each row is answered by the one of its task.

    Trained on balanced batches with a temperature for each task and uniform loss weights, they are M runs of
    single-task SAC side by side. ``max_grad_norm`` would tie them: it bounds the norm over all tasks.

    :param num_tasks: M; the rows of ``task`` must be one-hot
    :param net_arch: widths of the hidden layers of each perceptron
    :param normalization: "layer": layer normalisation before each ReLU, without learned scale and shift
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    tunable_parts: ClassVar[dict[str, Any]] = dict(by_task={"mlps": 1}, words={"heads": ("mlps.layers.-1",)})
    mixes_tasks = False
    reads_task_order = True

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
        self.mlps = BatchedMLP(
            (ensemble_size, num_tasks),
            (input_dim, *require_widths("net_arch", net_arch), output_dim),
            normalization=normalization,
        )

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        if self.in_task_order:
            rows = inputs.expand(self.ensemble_size, *inputs.shape[-2:])
            return self.mlps(rows.unflatten(1, (self.num_tasks, -1))).flatten(1, 2)
        ids = task.argmax(-1)
        if th.compiler.is_exporting() or th.jit.is_tracing():
            return self._all(inputs, ids)
        # The rows of each task go, padded to the largest number of them, to its own perceptron and back.
        place = F.one_hot(ids, self.num_tasks).cumsum(0)[th.arange(len(ids), device=ids.device), ids] - 1
        most = int(place.max()) + 1  # read back from the device: not capturable
        rows = inputs.expand(self.ensemble_size, *inputs.shape[-2:])
        padded = rows.new_zeros(self.ensemble_size, self.num_tasks, most, self.input_dim)
        padded[:, ids, place] = rows
        return self.mlps(padded)[:, ids, place]

    def _all(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """The same by all perceptrons for every row: the size of no tensor depends on the tasks, as exporting needs."""
        every = self.mlps(inputs.expand(self.ensemble_size, *inputs.shape[-2:]))  # [E, M, B, out]
        return every[:, ids, th.arange(ids.shape[0], device=ids.device)]
