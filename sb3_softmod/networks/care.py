"""CARE: a mixture of state encoders, attended by the task's context (Sodhani et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.networks.base import MultiTaskNetwork, require_positive, require_widths
from sb3_softmod.networks.layers import BatchedMLP, relu, softmax
from sb3_softmod.networks.mixing import mix


class CARENetwork(MultiTaskNetwork):
    """K encoders of the state, mixed by attention over a task context; encoding and context go to a perceptron.

    Differs from the paper: without its language metadata, the context is a perceptron of the rectified embedding that
    is learned for each task; actor and critics share no encoder; and a critic encodes state and action together.

    :param num_encoders: K (the paper: 6 on MT10, 10 on MT50)
    :param embedding_dim: width of the task embedding, the context and each encoding
    :param encoder_arch: widths of the hidden layers of the encoders, of the context and of the attention
    :param net_arch: widths of the hidden layers behind them
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"task_embedding": 1},
        words={
            "routing": ("task_embedding", "context", "attention"),
            "task": ("task_embedding",),
            "heads": ("mlp.layers.-1",),
        },
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        num_encoders: int = 6,
        embedding_dim: int = 50,
        encoder_arch: Sequence[int] = (50, 50),
        net_arch: Sequence[int] = (400, 400, 400),
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(num_encoders=num_encoders, embedding_dim=embedding_dim)
        E, D = ensemble_size, embedding_dim
        hidden = require_widths("encoder_arch", encoder_arch)
        self.task_embedding = nn.Parameter(th.randn(E, num_tasks, D))
        self.context = BatchedMLP((E,), (D, *hidden, D))
        self.attention = BatchedMLP((E,), (D, *hidden, num_encoders))
        self.encoders = BatchedMLP((E, num_encoders), (input_dim, *hidden, D))
        self.mlp = BatchedMLP((E,), (2 * D, *require_widths("net_arch", net_arch), output_dim))

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.mlp.layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        context = self._context(task)
        encoding = mix(self._attend(context).unsqueeze(-2), self.encoders(inputs)).squeeze(1)
        return self.mlp(th.cat([encoding, context], -1))

    def attention_weights(self, task: Tensor) -> Tensor:
        """How much each encoder counts for a task.

        :param task: ``[B, M]``
        :return: ``[E, B, K]``, rows that sum to 1
        """
        return self._attend(self._context(task))

    def _context(self, task: Tensor) -> Tensor:
        return self.context(relu(task @ self.task_embedding))

    def _attend(self, context: Tensor) -> Tensor:
        return softmax(self.attention(context))
