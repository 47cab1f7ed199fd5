"""Hard Routing: one module of each layer, chosen for each task by a table."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.checks import require_number
from sb3_softmod.networks.base import MultiTaskNetwork, require_positive
from sb3_softmod.networks.layers import BatchedMLP, at_least_float32, relu


class HardRoutingNetwork(MultiTaskNetwork):
    r"""L layers of n modules, with ReLU between them, of which a row passes one a layer.

    A tabular controller, as in Rosenbaum et al. 2018, holds for each task and layer a categorical distribution over
    the modules. In training mode the route of each row is drawn from it, in evaluation mode it is the most probable
    one. The controller learns by the score function: with the route :math:`r_b` of row b and its reward :math:`R_b`,
    the negative of its loss,

    .. math::
        \nabla J = \frac{1}{B} \sum_b \frac{R_b - \mu_t}{\sigma_t}\, \nabla \log \pi(r_b \mid t)

    where the baseline :math:`\mu_t` and the scale :math:`\sigma_t` are mean and standard deviation of the rewards of
    the batch's rows of the same task. The algorithm has to call :meth:`auxiliary_loss` for it, as
    :class:`.MultiTaskSAC` does; in plain SAC the controller stays as it was drawn.

    :param num_layers: L
    :param num_modules: n
    :param module_dim: d, width of a module
    :param embedding_dim: D, width of f(s), which the first layer reads: two linear layers, as in soft modularization
    :param controller_scale: the controller's logits are its table times this: it learns that many times as fast as the
        weights, with which it shares the optimizer
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"controller": 1},
        words={"routing": ("controller",), "task": ("controller",), "heads": ("module_layers.-1",)},
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        num_layers: int = 4,
        num_modules: int = 4,
        module_dim: int = 128,
        embedding_dim: int = 400,
        controller_scale: float = 10.0,
        ensemble_size: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        require_positive(num_layers=num_layers, num_modules=num_modules)
        require_positive(module_dim=module_dim, embedding_dim=embedding_dim)
        require_number("controller_scale", controller_scale, above=0)
        E = ensemble_size
        self.controller_scale = controller_scale
        self.state_encoder = BatchedMLP((E,), (input_dim, embedding_dim, embedding_dim))
        self.module_layers = BatchedMLP(
            (E, num_modules), (embedding_dim, *[module_dim] * (num_layers - 1), output_dim)
        ).layers
        # Nearly uniform; small differences, so that the tasks' most probable routes differ from the start.
        self.controller = nn.Parameter(0.01 / controller_scale * th.randn(E, num_tasks, num_layers, num_modules))
        self._drawn: Tensor | None = None  # the routes of the last pass of a training step, until its loss is known

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.module_layers[-1]

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        routes = self._draw(task) if self.training else self.routes(task)
        if self.training and th.is_grad_enabled() and self.controller.requires_grad:
            self._drawn = routes
        g = self.state_encoder(inputs)
        for k, layer in enumerate(self.module_layers):
            g = th.einsum("ebj,ejbd->ebd", routes[:, :, k], layer(relu(g) if k else g))
        return g

    def routes(self, task: Tensor) -> Tensor:
        """The most probable route of each row.

        :param task: ``[B, M]``
        :return: ``[E, B, L, n]``, one-hot along n
        """
        return self._one_hot(self._logits(task).detach())

    def probabilities(self) -> Tensor:
        """The controller's distributions, ``[E, M, L, n]``."""
        return (self.controller_scale * self.controller).softmax(-1)

    def auxiliary_loss(self, losses: Tensor, task: Tensor) -> Tensor | None:
        """The score-function loss of the controller, see :meth:`MultiTaskNetwork.auxiliary_loss`."""
        if self._drawn is None:
            return None
        routes, self._drawn = self._drawn, None
        log_prob = (routes * self._logits(task).log_softmax(-1)).sum((-1, -2))  # [E, B]
        count = task.sum(0).clamp(min=1)
        mean = losses @ task / count  # [E, M]
        variance = ((losses - mean @ task.T).square() @ task) / count
        rounding = 100 * th.finfo(losses.dtype).eps * (1 + mean.abs())  # smaller differences teach nothing
        scale = (variance.sqrt() + rounding) @ task.T
        advantage = (mean @ task.T - losses) / th.where(scale > 0, scale, 1)  # 0: of no task of this network
        return (-advantage * log_prob).sum(0).mean()

    def _logits(self, task: Tensor) -> Tensor:
        return self.controller_scale * at_least_float32(th.einsum("bm,emln->ebln", task, self.controller))

    def _draw(self, task: Tensor) -> Tensor:
        logits = self._logits(task).detach()
        gumbel = -th.rand_like(logits).clamp(min=1e-20).log()
        return self._one_hot(logits - gumbel.clamp(min=1e-20).log())

    @staticmethod
    def _one_hot(scores: Tensor) -> Tensor:
        # Unlike torch's one_hot, without reading the largest index back from the device.
        modules = th.arange(scores.shape[-1], device=scores.device)
        return (scores.argmax(-1, keepdim=True) == modules).to(scores.dtype)
