"""One gradient step of multi-task SAC: temperatures, critics and actor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import Actor
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from sb3_softmod.gradient_surgery import LossFunction, pcgrad, task_gradients
from sb3_softmod.loss_weights import loss_weights
from sb3_softmod.policies import MultiTaskActor, MultiTaskCritic
from sb3_softmod.task_observation import split

if TYPE_CHECKING:
    from sb3_softmod.multitask_sac import MultiTaskSAC

#: What is logged for each task and, as the mean over the tasks, for all: one row of the metrics of a gradient step.
METRICS = ("ent_coef", "loss_weight", "log_prob", "q_value", "critic_loss", "actor_loss", "ent_coef_loss")


class GradientStep:
    """Updates a model's temperatures, critics and actor from one batch.

    :param model: whose options say how
    """

    def __init__(self, model: MultiTaskSAC) -> None:
        self.model = model
        self.actor, self.critic, self.num_tasks = model.actor, model.critic, model.num_tasks

    def __call__(self, batch: ReplayBufferSamples) -> Tensor:
        """One update of temperatures, critics and actor.

        :param batch: B transitions of all tasks
        :return: the metrics ``[len(METRICS), M]``, each the mean over a task's samples
        """
        discounts = batch.discounts if batch.discounts is not None else self.model.gamma
        task = split(batch.observations, self.num_tasks)[1]  # [B, M]
        share = task / task.sum(0).clamp(min=1)  # its columns average over the samples of one task

        if self.model.use_sde:
            self.actor.reset_noise()
        actions_pi, log_prob = self.actor.action_log_prob(batch.observations)
        task_log_prob = log_prob.detach() @ share  # [M]

        alpha, ent_coef_loss = self._temperatures(task_log_prob, share.sum(0))
        weights = loss_weights(self.model.loss_weighting, alpha)
        sample_alpha = task @ alpha  # [B]
        sample_weight = task @ weights

        with th.no_grad():
            next_actions, next_log_prob = self.actor.action_log_prob(batch.next_observations)
            next_q = th.cat(self.model.critic_target(batch.next_observations, next_actions), 1).amin(1)
            next_q = next_q - sample_alpha * next_log_prob
            target_q = batch.rewards.flatten() + (1 - batch.dones.flatten()) * discounts * next_q

        q, critic_losses = self._minimize(
            self.critic, self._critic_loss, batch.observations, sample_weight, batch.actions, target_q
        )
        # Gradient surgery evaluates each loss anew, task by task, the actor's sample included.
        sampled = None if self.model.gradient_surgery else (actions_pi, log_prob)
        actor_loss = partial(self._actor_loss, sampled=sampled)
        # The actor is judged by the critics' most probable routes, not by draws.
        self.critic.set_training_mode(not isinstance(self.critic, MultiTaskCritic))
        (actor_losses,) = self._minimize(self.actor, actor_loss, batch.observations, sample_weight, sample_alpha)
        self.critic.set_training_mode(True)

        with th.no_grad():
            of_tasks = th.stack([q, critic_losses, actor_losses]) @ share  # [3, M]
            return th.cat([th.stack([alpha, weights, task_log_prob]), of_tasks, ent_coef_loss.unsqueeze(0)])

    def _temperatures(self, log_prob: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the temperatures, where they are learned.

        :param log_prob: ``[M]``, the mean over each task's samples
        :param present: ``[M]``, 1 for the tasks of the batch, 0 for others
        :return: the temperatures from before the step, and their losses; both ``[M]``
        """
        optimizer, log_alpha = self.model.ent_coef_optimizer, self.model.log_ent_coef
        if optimizer is None or log_alpha is None:
            alpha = self.model.ent_coef_tensor
            return alpha, th.zeros_like(alpha)
        alpha = log_alpha.detach().exp()
        # Eq. 2 for each task of the batch. Summed, so that a step does not shrink with the number of tasks.
        losses = -log_alpha * (log_prob + float(self.model.target_entropy) * present)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        return alpha, losses.detach()

    def _critic_loss(self, obs: Tensor, weight: Tensor, actions: Tensor, target_q: Tensor) -> tuple[Tensor, Any]:
        """The critics' mean loss, and of each sample the mean Q-value and the loss."""
        q = th.cat(self.critic(obs, actions), 1).T  # [E, B]
        losses = 0.5 * (q - target_q).square()
        loss = (weight * losses.sum(0)).mean()
        return self._with_auxiliary(self.critic, loss, losses, obs), (q.detach().mean(0), losses.detach().sum(0))

    def _actor_loss(
        self, obs: Tensor, weight: Tensor, alpha: Tensor, *, sampled: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Any]:
        """The actor's mean loss, and the loss of each sample."""
        actions, log_prob = sampled or self.actor.action_log_prob(obs)
        losses = alpha * log_prob - th.cat(self.critic(obs, actions), 1).amin(1)
        loss = (weight * losses).mean()
        return self._with_auxiliary(self.actor, loss, losses.unsqueeze(0), obs), (losses.detach(),)

    def _with_auxiliary(self, module: th.nn.Module, loss: Tensor, losses: Tensor, obs: Tensor) -> Tensor:
        """Add the loss that the network itself has, if any."""
        if not isinstance(module, (MultiTaskActor, MultiTaskCritic)):
            return loss
        auxiliary = module.network.auxiliary_loss(losses.detach(), split(obs, self.num_tasks)[1])
        return loss if auxiliary is None else loss + auxiliary

    def _minimize(self, module: Actor | ContinuousCritic, loss_function: LossFunction, *tensors: Tensor) -> Any:
        """One step of the module's optimizer.

        :param loss_function: see :data:`.LossFunction`
        :param tensors: its arguments, ``[B, ...]``
        :return: its metrics
        """
        module.optimizer.zero_grad()
        if self.model.gradient_surgery is None:
            loss, metrics = loss_function(*tensors)
            # Only this module takes a gradient: of the actor's loss, the critics' would be thrown away.
            loss.backward(inputs=[p for p in module.parameters() if p.requires_grad])
        else:
            gradients, metrics = task_gradients(module, loss_function, tensors, self.num_tasks)
            orders = th.rand(self.num_tasks, self.num_tasks, device=self.model.device).argsort(-1)
            projected = pcgrad(gradients, orders)
            for name, parameter in module.named_parameters():
                parameter.grad = projected.get(name)
        self._clip_gradients(module)
        module.optimizer.step()
        return metrics

    def _clip_gradients(self, module: th.nn.Module) -> None:
        if self.model.max_grad_norm is None:
            return
        if isinstance(module, (MultiTaskActor, MultiTaskCritic)):
            module.network.clip_grad_norm_(self.model.max_grad_norm)
        else:  # a policy of SB3: each of its Q-networks by itself
            for network in getattr(module, "q_networks", [module]):
                clip_grad_norm_(network.parameters(), self.model.max_grad_norm)
