"""BroNet, the network of BRO and BRC (Nauman et al. 2024, 2025): residual blocks with layer normalisation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.networks.base import MultiTaskNetwork, require_positive
from sb3_softmod.networks.layers import BatchedLayerNorm, BatchedLinear, relu


class BroNetwork(MultiTaskNetwork):
    r"""A residual network of the state and a learned embedding e(z) of the task:

    .. math::
        x^0 &= \mathrm{ReLU}(\mathrm{LN}(W_0 [s, e(z)])), \quad
        e(z) = {\textstyle\sum_t z_t\,e_t / \lVert e_t \rVert} \\
        x^{k} &= x^{k-1} + \mathrm{LN}(W_2^k\,\mathrm{ReLU}(\mathrm{LN}(W_1^k x^{k-1}))), \quad
        \mathrm{out} = W x^K

    where LN is layer normalisation with a learned scale and shift, and each linear layer has biases.

    :param width: of the hidden layers
    :param num_blocks: K
    :param embedding_dim: width of the task embedding
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    # No "task": the actor has no embedding of its own.
    tunable_parts: ClassVar[dict[str, Any]] = dict(by_task={"task_embedding": 1}, words={"heads": ("head",)})

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        width: int = 512,
        num_blocks: int = 2,
        embedding_dim: int = 32,
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(width=width, num_blocks=num_blocks, embedding_dim=embedding_dim)
        E = (ensemble_size,)
        # Of the norm that it is read with: the rate at which its direction learns depends on its length.
        self.task_embedding = nn.Parameter(F.normalize(th.randn(ensemble_size, num_tasks, embedding_dim), dim=-1))
        self.encoder = BatchedLinear(E, input_dim + embedding_dim, width)
        self.encoder_norm = BatchedLayerNorm(E, width)
        self.blocks = nn.ModuleList(ResidualBlock(E, width) for _ in range(num_blocks))
        self.head = BatchedLinear(E, width, output_dim)
        # Another network's embedding, once it is read instead of an own one. In a tuple, which torch does not look
        # into: it is no parameter of this network.
        self._read: tuple[nn.Parameter, ...] = ()

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.head

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        embedding = task @ F.normalize(self._embedding(), dim=-1)
        inputs = inputs.expand(self.ensemble_size, *inputs.shape[-2:])
        x = relu(self.encoder_norm(self.encoder(th.cat([inputs, embedding], -1))))
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def read_embedding_of(self, other: BroNetwork) -> None:
        """From now on read the task embedding of another network's first member, without gradient, and own none.

        Copies (``copy.deepcopy``, pickle) of both networks together are tied in the same way.

        :param other: a network that owns its embedding
        :raises ConfigurationError: if the two embeddings differ in width
        """
        own, width = self.task_embedding.shape[-1], other.task_embedding.shape[-1]
        if own != width:
            raise ConfigurationError(
                f"embedding_dim must be the same for actor and critics, whose task embedding the actor reads, "
                f"not {own} and {width}."
            )
        del self.task_embedding
        self._read = (other.task_embedding,)

    def _embedding(self) -> Tensor:
        """``[E, M, embedding_dim]``, of any norm."""
        if not self._read:
            return self.task_embedding
        return self._read[0][:1].detach().expand(self.ensemble_size, -1, -1)


class ResidualBlock(nn.Module):
    """A block for each member: x + LN(W_2 ReLU(LN(W_1 x))).

    :param batch_shape: the axes of the batch of blocks
    :param width: of input, hidden layer and output
    """

    def __init__(self, batch_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.hidden = BatchedLinear(batch_shape, width, width)
        self.hidden_norm = BatchedLayerNorm(batch_shape, width)
        self.out = BatchedLinear(batch_shape, width, width)
        self.out_norm = BatchedLayerNorm(batch_shape, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[*batch_shape, B, width]`` to the same."""
        hidden = relu(self.hidden_norm(self.hidden(inputs)))
        return inputs + self.out_norm(self.out(hidden))
