"""Weights of the tasks' losses that are learned along with the critics: GradNorm, FAMO and uncertainty.

They weight the critics' losses alone; the actor's loss is the plain mean over the tasks. Each of the three reads a loss
as a distance from its minimum: FAMO takes its logarithm, GradNorm its ratio to the first one, uncertainty the negative
logarithm of a likelihood. The critics' losses are such distances. The actor's, alpha log pi - Q, is of any sign and has
no minimum, so that the zero that it is measured from would decide the weights, and uncertainty's would grow without
bound wherever it is negative. FAMO's authors, too, weight the critics alone (github.com/Cranial-XIX/FAMO, mtrl_files).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import Tensor

from sb3_softmod.common.checks import arguments_of, require_number
from sb3_softmod.common.errors import ConfigurationError, nearest

#: What a loss counts as that is not above its minimum: FAMO's epsilon, as in its authors' code.
_EPSILON = 1e-8


class TaskLosses(NamedTuple):
    """The critics' losses of the tasks of a batch, each the mean over its samples and over the critics."""

    mean: Tensor  # [M]
    excess: Tensor  # [M], above the least that they can be, and at least 1e-8
    present: Tensor  # [M] booleans: of which tasks there are samples; the others have no part in anything


def task_losses(losses: Tensor, least: Tensor, share: Tensor) -> TaskLosses:
    """The losses of each task.

    :param losses: ``[E, B]``, of every critic
    :param least: ``[B]``, the least that each can be
    :param share: ``[B, M]``, whose columns average over the samples of one task; 0 for a task without samples
    """
    losses = losses.mean(0)
    return TaskLosses(losses @ share, ((losses - least) @ share).clamp(min=0) + _EPSILON, share.sum(0) > 0)


class LearnedWeights(ABC):
    """A weight for each task's critics' losses, from one learned number each.

    :param num_tasks: M
    :param device: where the learner is
    :param start: the first of each number
    :param learning_rate: of the Adam that learns them
    :param weight_decay: of it
    """

    #: Whether they read the norms of the tasks' gradients.
    reads_norms: ClassVar[bool] = False
    #: Whether they learn with the learning rate of the model.
    with_rate_of_model: ClassVar[bool] = False

    def __init__(
        self, num_tasks: int, device: th.device, start: float, learning_rate: float, weight_decay: float = 0.0
    ) -> None:
        self.options: dict[str, Any] = {}  # that they were made with
        #: ``[M]``
        self.numbers = th.full((num_tasks,), start, device=device)
        self.optimizer = th.optim.Adam([self.numbers], lr=learning_rate, weight_decay=weight_decay)

    @classmethod
    def option_names(cls) -> list[str]:
        """What ``loss_weighting_kwargs`` may hold."""
        given = {"self", "num_tasks", "device", *(["learning_rate"] if cls.with_rate_of_model else [])}
        return [name for name in arguments_of(cls) if name not in given]

    @abstractmethod
    def weights(self, losses: TaskLosses) -> Tensor:
        """What the loss of each task is multiplied by, ``[M]``; the critics minimise the mean over the tasks."""

    @abstractmethod
    def gradient(self, before: TaskLosses, after: Callable[[], TaskLosses], norms: Callable[[], Tensor]) -> Tensor:
        """The gradient of the numbers, once the critics have learned.

        :param before: the losses that they learned from
        :param after: evaluates the losses of the same batch again
        :param norms: evaluates the gradient norms of the *weighted* losses before, ``[M]``
        :return: ``[M]``
        """

    def learn(self, gradient: Tensor, present: Tensor, step: Callable[[th.optim.Optimizer], None]) -> None:
        """Take one step.

        :param gradient: ``[M]``; where it is not finite, which the critics' next update reports, it tells nothing
        :param present: ``[M]`` booleans, the tasks whose numbers may move
        :param step: steps an optimizer, unless the update is being dropped
        """
        before = self.numbers.clone()
        self.numbers.grad = th.where(present & gradient.isfinite(), gradient, 0.0)
        step(self.optimizer)
        settled = th.where(present, self._settle(self.numbers, before, present), before)
        stepped = (self.numbers != before).any()
        self.numbers.copy_(th.where(stepped, settled, before))

    def _settle(self, numbers: Tensor, before: Tensor, present: Tensor) -> Tensor:
        """The numbers after a step, ``[M]``, brought to where they may be."""
        return numbers

    def tensors(self) -> dict[str, Tensor]:
        """All that is learned, ``[M]`` each, by name."""
        return {"numbers": self.numbers}

    # -------------------------------------------------------------------- saving

    def progress(self) -> dict[str, Any]:
        """What :meth:`set_progress` takes, in plain lists; waits for the device."""
        adam = self.optimizer.state.get(self.numbers, {})
        return {name: tensor.tolist() for name, tensor in {**self.tensors(), **adam}.items()}

    def set_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on from where another one was, bit for bit.

        :raises ValueError: for what is no progress of these weights, or of another number of tasks
        """
        own = self.tensors()
        if not isinstance(progress, Mapping) or not own.keys() <= progress.keys():
            raise ValueError(f"it holds no {', '.join(own)}")
        try:
            given = {name: th.tensor(values, dtype=th.float32) for name, values in progress.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"it holds what are no numbers ({error})") from error
        for name, tensor in given.items():
            if tensor.shape != (() if name == "step" else self.numbers.shape) or not tensor.isfinite().all():
                raise ValueError(f"its {name} are not {len(self.numbers)} finite numbers")
        for name, tensor in own.items():
            tensor.copy_(given.pop(name))
        if given:
            step = given.pop("step", th.tensor(0.0))  # stays on the CPU: the learner moves it where it wants it
            self.optimizer.state[self.numbers] = {
                "step": step,
                **{name: tensor.to(self.numbers) for name, tensor in given.items()},
            }


class Uncertainty(LearnedWeights):
    r"""Homoscedastic uncertainty (Kendall et al. 2018, arXiv 1705.07115, Eqs. 7 and 10).

    The critics of task i predict with a noise of variance :math:`\sigma_i^2` of its own, which is learned by maximum
    likelihood. With :math:`s_i = \log \sigma_i^2`, from 0, and the mean :math:`\ell_i` over the critics, critics and
    :math:`s` minimise

    .. math:: \sum_i \Big( e^{-s_i} \ell_i + \tfrac12 s_i \Big),

    the negative log-likelihood where :math:`\ell_i` is half the squared error, and the paper's approximation of it
    where it is a cross-entropy. The weights :math:`w_i = e^{-s_i}` do not average to 1: where critics agree with
    their targets to 0.1, the weight is 100.

    :param num_tasks: M
    :param device: where the learner is
    :param learning_rate: of s; the learner sets it to that of the model
    """

    with_rate_of_model = True

    def __init__(self, num_tasks: int, device: th.device, *, learning_rate: float = 3e-4) -> None:
        super().__init__(num_tasks, device, 0.0, learning_rate)

    def weights(self, losses: TaskLosses) -> Tensor:
        return th.where(losses.present, (-self.numbers).exp(), 0.0)

    def gradient(self, before: TaskLosses, after: Callable[[], TaskLosses], norms: Callable[[], Tensor]) -> Tensor:
        return 0.5 - self.weights(before) * before.mean


class FAMO(LearnedWeights):
    r"""Fast adaptive multitask optimization (Liu et al. 2023, arXiv 2306.03792, Algorithm 1).

    Every task's loss is to fall at the same rate. With logits :math:`\xi`, from 0, :math:`z = \text{softmax}(\xi)` and
    the losses :math:`\ell_i` above their minima, the weights are, by Eq. 11,

    .. math:: w_i = M c \frac{z_i}{\ell_i}, \qquad c = \Big(\sum_j \frac{z_j}{\ell_j}\Big)^{-1},

    M times those of the paper, so that they average 1. Once the critics have learned, the batch is evaluated again,
    :math:`\ell'`, and Adam steps along :math:`\delta + \gamma \xi`, with Eq. 10's

    .. math:: \delta = \Big[\frac{\partial z}{\partial \xi}\Big]^\top (\log \ell - \log \ell').

    The least that a squared error can be is 0, and that of a cross-entropy the entropy of its target. In the authors'
    code for reinforcement learning the gradients are multiplied by 1 / c instead of c (its issue 14); not so here.

    :param num_tasks: M
    :param device: where the learner is
    :param learning_rate: of the logits; 0.025 in the authors' code
    :param weight_decay: :math:`\gamma`; 0.01 is what the authors' script for MT10 has, 0.001 their default elsewhere
    :raises ConfigurationError: for numbers out of range
    """

    def __init__(
        self, num_tasks: int, device: th.device, *, learning_rate: float = 0.025, weight_decay: float = 0.01
    ) -> None:
        require_number("learning_rate of loss_weighting_kwargs", learning_rate, above=0)
        require_number("weight_decay of loss_weighting_kwargs", weight_decay, 0)
        super().__init__(num_tasks, device, 0.0, learning_rate, weight_decay)

    def weights(self, losses: TaskLosses) -> Tensor:
        raw = self._shares(losses.present) / losses.excess
        return raw * (losses.present.sum() / raw.sum())

    def _shares(self, present: Tensor) -> Tensor:
        return self.numbers.masked_fill(~present, -th.inf).softmax(0)

    def gradient(self, before: TaskLosses, after: Callable[[], TaskLosses], norms: Callable[[], Tensor]) -> Tensor:
        z, improvement = self._shares(before.present), before.excess.log() - after().excess.log()
        return z * (improvement - (z * improvement).sum())


class GradNorm(LearnedWeights):
    r"""Gradient normalisation (Chen et al. 2018, arXiv 1711.02257, Algorithm 1).

    The gradients of all tasks' weighted losses are to be of one size, larger where a task learns more slowly than the
    others. With :math:`G_i = \lVert \nabla_W w_i L_i \rVert` at the weights W of the last layer that the tasks share,
    their mean :math:`\bar G`, the losses :math:`\ell_i` above their minima and what they were at first,
    :math:`\ell_i^0`, Adam steps along the gradient of

    .. math:: \sum_i \Big| G_i - \bar G \Big[ \frac{\ell_i / \ell_i^0}{\frac1M \sum_j \ell_j / \ell_j^0} \Big]^\alpha
        \Big|

    with respect to w, from 1, with the second term taken as a constant. The weights then are scaled to sum to M. The
    paper lets a step make weights negative; here none falls below 0.001.

    :param num_tasks: M
    :param device: where the learner is
    :param learning_rate: of the weights; the paper's 0.025
    :param asymmetry: :math:`\alpha`, how much more a slow task is to count; 0.12 is the paper's for tasks with one
        kind of loss, 1.5 for tasks that differ
    :raises ConfigurationError: for numbers out of range
    """

    reads_norms = True
    _LEAST: ClassVar[float] = 1e-3

    def __init__(
        self, num_tasks: int, device: th.device, *, learning_rate: float = 0.025, asymmetry: float = 0.12
    ) -> None:
        require_number("learning_rate of loss_weighting_kwargs", learning_rate, above=0)
        require_number("asymmetry of loss_weighting_kwargs", asymmetry, 0)
        super().__init__(num_tasks, device, 1.0, learning_rate)
        self._asymmetry = asymmetry
        self._first = th.zeros(num_tasks, device=device)  # losses; 0 until there is one

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "first_losses": self._first}

    def weights(self, losses: TaskLosses) -> Tensor:
        present = losses.present
        first = present & (self._first == 0) & losses.excess.isfinite()
        self._first.copy_(th.where(first, losses.excess, self._first))
        weights = th.where(present, self.numbers, 0.0)
        return weights * (present.sum() / weights.sum())

    def gradient(self, before: TaskLosses, after: Callable[[], TaskLosses], norms: Callable[[], Tensor]) -> Tensor:
        present, sizes = before.present, norms()
        ratio = th.where(present, before.excess / self._first, 0.0)
        slowness = ratio / _mean(ratio, present)
        target = _mean(sizes, present) * slowness**self._asymmetry
        return sizes / self.weights(before) * (sizes - target).sign()

    def _settle(self, numbers: Tensor, before: Tensor, present: Tensor) -> Tensor:
        numbers = numbers.clamp(min=self._LEAST)
        return numbers * (th.where(present, before, 0.0).sum() / th.where(present, numbers, 0.0).sum())


def _mean(values: Tensor, present: Tensor) -> Tensor:
    return th.where(present, values, 0.0).sum() / present.sum()


#: By what ``loss_weighting`` calls them.
LEARNED_WEIGHTINGS: dict[str, type[LearnedWeights]] = {
    "gradnorm": GradNorm,
    "famo": FAMO,
    "uncertainty": Uncertainty,
}


def learned_weights(
    weighting: str, options: Mapping[str, Any], num_tasks: int, device: th.device, now: LearnedWeights | None = None
) -> LearnedWeights | None:
    """The weights of a name; None for weights that are not learned.

    :param weighting: of :data:`.LOSS_WEIGHTINGS`
    :param options: ``loss_weighting_kwargs``
    :param num_tasks: M
    :param device: where the learner is
    :param now: what there is already: it stays where it is that; of other options, the new ones go on from it
    :raises ConfigurationError: for options that they do not have
    """
    made = LEARNED_WEIGHTINGS.get(weighting)
    known = [] if made is None else made.option_names()
    for name in options:
        if name not in known:
            reason = nearest(name, known) if known else "it has none, leave loss_weighting_kwargs out."
            raise ConfigurationError(f"loss_weighting={weighting!r} has no option {name!r}: {reason}")
    if made is None or (type(now) is made and now.options == options):
        return now if made else None
    new = made(num_tasks, device, **options)
    new.options = dict(options)
    if now is not None and type(now) is made:
        new.set_progress(now.progress())
    return new
