"""One gradient step of multi-task SAC: temperatures, critics and actor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_parameters_by_name
from stable_baselines3.sac.policies import Actor
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from sb3_softmod.common.task_observation import split
from sb3_softmod.learner.acceleration import Acceleration
from sb3_softmod.learner.critic_objectives import CriticObjective, make_objective, over_members
from sb3_softmod.learner.finite_updates import FiniteUpdates, NamedParameters
from sb3_softmod.learner.gradient_norms import WatchedFunction
from sb3_softmod.learner.gradient_surgery import LossFunction, task_gradients
from sb3_softmod.learner.learned_weights import LearnedWeights, TaskLosses, task_losses
from sb3_softmod.learner.loss_weights import loss_weights
from sb3_softmod.learner.options import LearnerState
from sb3_softmod.networks.base import in_task_order
from sb3_softmod.policies import MultiTaskActor, MultiTaskCritic

#: What is logged for each task and, as the mean over the tasks, for all: one row of the metrics of a gradient step.
METRICS = (
    "ent_coef",
    "loss_weight",
    "log_prob",
    "q_value",
    "critic_loss",
    "actor_loss",
    "ent_coef_loss",
    "reward_scale",
)


class GradientStep:
    """Updates temperatures, critics and actor from one batch.

    :param state: what it changes, and what it is told
    :param acceleration: how networks and step are evaluated
    :param balanced: whether each batch holds as many rows of every task that it has
    :param dropped: how many updates were not finite before
    """

    def __init__(
        self, state: LearnerState, acceleration: Acceleration, balanced: bool = False, dropped: int = 0
    ) -> None:
        policy, temperatures = state.policy, state.temperatures
        self.state = state
        self.actor, self.critic, self.num_tasks = policy.actor, policy.critic, state.options.num_tasks
        parts = (self.actor, self.critic, policy.critic_target)
        self._networks = [part.network for part in parts if isinstance(part, (MultiTaskActor, MultiTaskCritic))]
        self._optimizers: list[th.optim.Optimizer] = [self.actor.optimizer, self.critic.optimizer]
        if temperatures.optimizer is not None:
            self._optimizers.append(temperatures.optimizer)
        learned = state.learned_weights
        if learned is not None:
            self._optimizers.append(learned.optimizer)
        #: Those that have the learning rate of the model.
        self._scheduled = [o for o in self._optimizers if learned is None or o is not learned.optimizer]
        if learned is not None and learned.with_rate_of_model:
            self._scheduled.append(learned.optimizer)
        for optimizer in self._optimizers:
            acceleration.prepare(optimizer)
        self._acceleration = acceleration
        # With and without the actor, see policy_delay.
        self._steps = {
            with_actor: acceleration.step(partial(self._update_in_order, with_actor=with_actor), self._settings)
            for with_actor in (True, False)
        }
        options, atoms = state.options, getattr(policy, "value_atoms", None)  # SB3's policies have none
        self._objective = make_objective(options.critic_kind, atoms, policy.device)
        self._distribution = acceleration.evaluation(self.actor.get_action_dist_params)
        self._q_values = acceleration.evaluation(partial(_q_values, self._objective, self.critic))
        self._predictions = acceleration.evaluation(partial(self._objective.predict, self.critic))
        self._watched_predictions: WatchedFunction | None = None
        if learned is not None and learned.reads_norms:
            predict = acceleration.evaluation(partial(self._objective.predict, self.critic), compiled=False)
            assert isinstance(self.critic, MultiTaskCritic)
            assert self.critic.network.last_shared_layer is not None
            self._watched_predictions = WatchedFunction(predict, self.critic.network.last_shared_layer)
        self._target_predictions = acceleration.evaluation(partial(self._objective.predict, policy.critic_target))
        self._learned: list[Tensor] = list(self.critic.parameters())
        acting = set(self.actor.parameters())
        self._critics_own = [p for p in self._learned if p not in acting]  # SB3's may have the actor's extractor too
        self._targets: list[Tensor] = list(policy.critic_target.parameters())
        # Of a critic of SB3 with batch normalisation.
        self._statistics, self._target_statistics = (
            get_parameters_by_name(critic, ["running_"]) for critic in (self.critic, policy.critic_target)
        )
        self._parameters: dict[str, NamedParameters] = {
            "temperatures": [] if temperatures.log_alpha is None else [("log_ent_coef", temperatures.log_alpha)],
            "critic": [(f"critic.{name}", p) for name, p in self.critic.named_parameters() if p not in acting],
            "actor": [(f"actor.{name}", p) for name, p in self.actor.named_parameters()],
        }
        #: Which updates were dropped.
        self.finite = FiniteUpdates(state, self._optimizers, acceleration.products()(self._update_again), dropped)
        self._balanced = balanced
        self._num_present = 0  # see __call__

    def __call__(self, batch: ReplayBufferSamples, num_present: int = 0, at: tuple[int, int] = (1, 0)) -> Tensor:
        """One update of temperatures, critics and actor.

        :param batch: B transitions
        :param num_present: how many tasks its rows are of, ordered by task, as many of each; the temperatures of the
            other tasks stay, and have no part in the loss weights. 0: not known, or drawn from all tasks by chance
        :param at: which gradient step it is, from 1, and after how many environment steps; for reports
        :return: the metrics ``[len(METRICS), M]``, each the mean over a task's samples; valid until the next call; NaN
            for a task without samples; NaN or infinite where the update was not finite and therefore dropped
        :raises NonFiniteError: see :meth:`.FiniteUpdates.check`
        """
        self._num_present = num_present
        moment = self.finite.moment(*at)
        with self._acceleration.products():
            metrics = self._steps[self._has_actor(at[0])](batch)
        self.finite.taken(moment)
        return metrics

    def set_learning_rate(self, rate: float) -> None:
        """Of all optimizers, but for those of learned weights that have a rate of their own."""
        for optimizer in self._scheduled:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # a CUDA graph reads it where it is
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def update_targets(self) -> None:
        """Move the target critics towards the critics, unless the last update was dropped."""
        with th.no_grad():
            self.finite.watch.move(self._targets, self._learned, self.state.options.tau)
            if self._statistics:
                self.finite.watch.move(self._target_statistics, self._statistics, 1.0)

    def _settings(self) -> tuple[Any, ...]:
        """All that an update reads besides its batch and tensors that stay where they are."""
        groups = (group.items() for optimizer in self._optimizers for group in optimizer.param_groups)
        return (
            self._num_present,
            self.state.options,
            [_place(value) for value in self.state.temperatures],
            None if self.state.reward_scale is None else _place(self.state.reward_scale.largest),
            None if self.state.learned_weights is None else _place(self.state.learned_weights.numbers),
            _place(self.state.success_rates),
            [(name, _place(value)) for group in groups for name, value in group if name != "params"],
            [p.requires_grad for stage in self._parameters.values() for _, p in stage],
        )

    def _has_actor(self, gradient_step: int) -> bool:
        """Whether a gradient step is one of the actor too; they are counted from 1."""
        return gradient_step % self.state.options.policy_delay == 0

    def _update_again(self, batch: ReplayBufferSamples, gradient_step: int) -> Tensor:
        """An update that was taken before; the host reads from its batch what it was told then."""
        if self._balanced:
            self._num_present = int(split(batch.observations, self.num_tasks)[1].any(0).sum())
        return self._update_in_order(batch, self._has_actor(gradient_step))

    def _update_in_order(self, batch: ReplayBufferSamples, with_actor: bool) -> Tensor:
        """An update that lets the networks know where the rows of each task are; surgery evaluates parts of a batch."""
        ordered = self._num_present == self.num_tasks and self.state.surgery is None
        with in_task_order(self._networks if ordered else []):
            return self._update(batch, with_actor)

    def _update(self, batch: ReplayBufferSamples, with_actor: bool) -> Tensor:
        finite = self.finite.inspector
        finite.begin()
        discounts = batch.discounts.flatten() if batch.discounts is not None else self.state.options.gamma
        task = split(batch.observations, self.num_tasks)[1]  # [B, M]
        count = task.sum(0)
        share = task / count.clamp(min=1)  # its columns average over the samples of one task
        present = count > 0 if 0 < self._num_present < self.num_tasks else None  # [M], where tasks are left out

        if self.state.options.use_sde:
            self.actor.reset_noise()
        # Gradient surgery evaluates each loss anew, task by task, the actor's sample included.
        surgery = self.state.surgery is not None
        missing = th.full_like(count, th.nan)  # [M], of what only a step of the actor measures
        temperatures = self.state.temperatures
        alpha, task_log_prob, ent_coef_loss = temperatures.values(), missing, missing
        if with_actor:
            with th.set_grad_enabled(not surgery):
                actions_pi, log_prob = self._act(batch.observations)
            task_log_prob = log_prob.detach() @ share  # [M]
            ent_coef_loss = temperatures.losses(task_log_prob, self.state.options.target_entropy, share.sum(0))
        weights = loss_weights(self.state.options.loss_weighting, alpha, present, self.state.success_rates)
        if with_actor:
            values = {"temperature": alpha, "loss weight": weights, "loss of the temperatures": ent_coef_loss}
            finite.test("temperatures", values, self._parameters["temperatures"], log_prob)
        sample_alpha = task @ alpha  # [B]
        sample_weight = task @ weights
        rewards, reward_scale = self._scaled(batch.rewards.flatten(), task, alpha)

        with th.no_grad():
            next_actions, next_log_prob = self._act(batch.next_observations)
            predictions = self._target_predictions(batch.next_observations, next_actions)
            discounts = (1 - batch.dones.flatten()) * discounts
            over, entropy_cost = self.state.options.critic_target_kind, sample_alpha * next_log_prob
            target = self._objective.target(predictions, over, entropy_cost, rewards, discounts)

        learned, tensors = self.state.learned_weights, (batch.observations, sample_weight, batch.actions, target)
        if learned is None:
            q, critic_losses = self._minimize(self.critic, self._critic_loss, *tensors)
        else:
            q, critic_losses, weights = self._minimize_balanced(learned, task, share, *tensors)
        task_actor_loss = missing
        if with_actor:
            actor_loss = partial(self._actor_loss, sampled=None if surgery else (actions_pi, log_prob))
            with self._judging():
                (losses,) = self._minimize(self.actor, actor_loss, batch.observations, sample_weight, sample_alpha)
            task_actor_loss = losses @ share
            temperatures.step(finite.step, present)  # last: they stay where the others cannot step
        finite.end(batch)

        with th.no_grad():
            metrics = [alpha, weights, task_log_prob, q @ share, critic_losses @ share, task_actor_loss, ent_coef_loss]
            return th.stack([*metrics, reward_scale]).masked_fill(count == 0, th.nan)

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """The critics judge the actor: by their most probable routes, not by draws, and without learning from it."""
        learning = [p for p in self._critics_own if p.requires_grad]
        self.critic.set_training_mode(not isinstance(self.critic, MultiTaskCritic))
        for parameter in learning:
            parameter.requires_grad_(False)  # a compiled backward pass would compute their gradients too
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
            self.critic.set_training_mode(True)

    def _act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions.

        :param obs: ``[B, O + M]``
        :return: actions ``[B, action_dim]`` and their log-probabilities ``[B]``
        """
        mean, log_std, kwargs = self._distribution(obs)
        # It keeps what it drew, and a model that keeps tensors of a mapped pass cannot be copied.
        return copy.copy(self.actor.action_dist).log_prob_from_params(mean, log_std, **kwargs)

    def _scaled(self, rewards: Tensor, task: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Divide rewards by the scales of their tasks; those of several steps too, whose return is linear in them.

        :param rewards: ``[B]``
        :param task: ``[B, M]``, one-hot
        :param alpha: ``[M]``, the temperatures
        :return: ``[B]``, and the scales ``[M]``, NaN where rewards are taken as they are
        """
        if self.state.reward_scale is None:
            return rewards, th.full_like(alpha, th.nan)
        scale = self.state.reward_scale.of(alpha, self.state.options.target_entropy, self.state.options.v_max)
        return rewards / (task @ scale), scale

    def _minimize_balanced(
        self, learned: LearnedWeights, task: Tensor, share: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the critics with weights that are learned, and one of these.

        :param task: ``[B, M]``, one-hot
        :param share: ``[B, M]``, whose columns average over the samples of one task
        :param tensors: arguments of :meth:`_critic_loss`
        :return: its metrics, and the weights ``[M]``
        """
        obs, _, actions, target = tensors
        least = self._objective.least(target)
        before, weights = TaskLosses(*[share.new_zeros(self.num_tasks)] * 3), share.new_zeros(self.num_tasks)

        def weigh(losses: Tensor) -> Tensor:
            nonlocal before, weights
            before = task_losses(losses.detach(), least, share)
            weights = learned.weights(before)
            return task @ weights

        def after() -> TaskLosses:
            with th.no_grad():
                return task_losses(self._objective.losses(self._predictions(obs, actions), target), least, share)

        def norms() -> Tensor:
            assert self._watched_predictions is not None
            num_present = self._num_present or self.num_tasks
            found = self._watched_predictions.gradient_norms(num_present)
            # The loss is a mean over the tasks, and those of the paper are summed.
            return num_present * (found @ task.unflatten(0, (num_present, -1))[:, 0])

        q, losses = self._minimize(self.critic, partial(self._critic_loss, weigh=weigh), *tensors)
        learned.learn(learned.gradient(before, after, norms), before.present, self.finite.inspector.step)
        return q, losses, weights

    def _critic_loss(
        self,
        obs: Tensor,
        weight: Tensor,
        actions: Tensor,
        target: Tensor,
        *,
        weigh: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Any]:
        """The critics' mean loss, and of each sample the mean Q-value and the loss.

        :param weight: of each sample, ``[B]``
        :param weigh: from the losses ``[E, B]`` to other weights, where they depend on these
        """
        predictions = (self._watched_predictions or self._predictions)(obs, actions)
        losses = self._objective.losses(predictions, target)  # [E, B]
        if weigh is not None:
            weight = weigh(losses)
        loss = (weight * losses.sum(0)).mean()
        q = self._objective.q_values(predictions.detach()).mean(0)
        return self._with_auxiliary(self.critic, loss, losses, obs), (q, losses.detach().sum(0))

    def _actor_loss(
        self, obs: Tensor, weight: Tensor, alpha: Tensor, *, sampled: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Any]:
        """The actor's mean loss, and the loss of each sample."""
        actions, log_prob = sampled or self._act(obs)
        losses = alpha * log_prob - over_members(self._q_values(obs, actions), self.state.options.critic_target_kind)
        loss = (weight * losses).mean()
        return self._with_auxiliary(self.actor, loss, losses.unsqueeze(0), obs), (losses.detach(),)

    def _with_auxiliary(self, module: th.nn.Module, loss: Tensor, losses: Tensor, obs: Tensor) -> Tensor:
        """Add the loss that the network itself has, if any."""
        if not isinstance(module, (MultiTaskActor, MultiTaskCritic)):
            return loss
        auxiliary = module.network.auxiliary_loss(losses.detach(), split(obs, self.num_tasks)[1])
        return loss if auxiliary is None else loss + auxiliary

    def _minimize(self, module: Actor | ContinuousCritic, loss_function: LossFunction, *tensors: Tensor) -> Any:
        """One step of the module's optimizer, where the loss and the gradients are finite.

        :param loss_function: see :data:`.LossFunction`
        :param tensors: its arguments, ``[B, ...]``
        :return: its metrics
        """
        stage = "actor" if module is self.actor else "critic"
        module.optimizer.zero_grad()
        if self.state.surgery is None:
            loss, metrics = loss_function(*tensors)
            loss.backward()
        else:
            num_present = self._num_present or self.num_tasks
            gradients, metrics = task_gradients(module, loss_function, tensors, num_present)
            combined = self.state.surgery(stage, gradients)
            for name, parameter in module.named_parameters():
                parameter.grad = combined.get(name)
            loss = metrics[-1].mean()
        # Before clipping, which makes zeros of gradients whose norm is infinite.
        self.finite.inspector.test(stage, {f"loss of the {stage}": loss}, self._parameters[stage], metrics[-1])
        self._clip_gradients(module)
        self.finite.inspector.step(module.optimizer)
        return metrics

    def _clip_gradients(self, module: th.nn.Module) -> None:
        limit = self.state.options.max_grad_norm
        if limit is None:
            return
        if isinstance(limit, (list, tuple)):
            limit = limit[0 if module is self.actor else 1]
        if isinstance(module, (MultiTaskActor, MultiTaskCritic)):
            module.network.clip_grad_norm_(limit)
        else:  # a policy of SB3: each of its Q-networks, and what extracts their features, by itself
            parts = [module] if module is self.actor else [*module.q_networks, module.features_extractor]  # type: ignore[misc]
            for parameters in (list(part.parameters()) for part in parts):
                if parameters:
                    clip_grad_norm_(parameters, limit)


def _place(value: Any) -> Any:
    """Where a tensor is, whatever it holds; of other values they themselves."""
    return value.data_ptr() if isinstance(value, Tensor) else value


def _q_values(objective: CriticObjective, critic: ContinuousCritic, obs: Tensor, actions: Tensor) -> Tensor:
    """The Q-values of every member, ``[E, B]``."""
    return objective.q_values(objective.predict(critic, obs, actions))
