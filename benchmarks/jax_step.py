"""The gradient step of SAC on soft-modular networks in JAX, from the equations: the peer of our learner.

Networks are nested dictionaries of arrays, one for all E members of an ensemble, which stand along the first axis of
every array. Kernels are ``[in, out]``, as JAX's libraries have them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sb3_softmod.networks import SoftModularNetwork
from sb3_softmod.networks.soft_modular import SoftModularOptions

Parameters = dict[str, Any]

#: SB3's bounds of the actor's log standard deviation, and what keeps the logarithm of its tanh's derivative finite.
LOG_STD = (-20.0, 2.0)
EPSILON = 1e-6


class State(NamedTuple):
    """All that a step changes."""

    actor: Parameters
    critics: Parameters
    targets: Parameters
    log_alpha: Array  # [M]
    optimizers: tuple[Any, Any, Any]  # of the first, the second and the fourth


class Batch(NamedTuple):
    """B transitions."""

    states: Array  # [B, O]
    tasks: Array  # [B, M], one-hot
    actions: Array  # [B, A]
    rewards: Array  # [B]
    dones: Array  # [B]
    next_states: Array  # [B, O]
    next_tasks: Array  # [B, M]


class Settings(NamedTuple):
    """What a step is told."""

    actor: SoftModularOptions
    critics: SoftModularOptions
    target_entropy: float
    weighting: str  # "alpha" (Eq. 10) or "log_alpha" (the authors' code)
    max_grad_norm: float | None
    gamma: float = 0.99
    tau: float = 0.005
    learning_rate: float = 3e-4
    adam_epsilon: float = 1e-8
    dtype: Any = jnp.float32  # of the networks' layers


def linear(layer: Parameters, x: Array) -> Array:
    """``[B, in]`` to ``[B, out]``."""
    return x @ layer["kernel"] + layer["bias"]


def network(params: Parameters, options: SoftModularOptions, x: Array, task: Array) -> Array:
    """One member, Eqs. 5 to 9 or as the authors' released code: ``[B, in]`` and ``[B, M]`` to ``[B, out]``."""
    n = options.num_modules
    f = x
    for k, layer in enumerate(params["state_encoder"]):
        f = linear(layer, jax.nn.relu(f) if k else f)
    e = f * linear(params["task_encoder"], task)
    for layer in params["routing_encoder"]:
        e = linear(layer, jax.nn.relu(e))

    probabilities: list[Array] = []
    history: list[Array] = []
    for k, down in enumerate(params["routing_down"]):
        context = linear(params["routing_up"][k - 1], jnp.concatenate(history, -1)) * e if k else e
        logits = linear(down, jax.nn.relu(context))
        p = jax.nn.softmax(logits.reshape(len(x), -1, n).astype(jnp.float32)).astype(logits.dtype)  # [B, targets, n]
        probabilities.append(p)
        if options.routing_history == "previous_logits":
            history = [logits]
        else:
            history.append(p.reshape(len(x), -1))

    g = (jax.nn.relu(f) if options.activate_embedding else f)[None]
    for layer, p in zip(params["module_layers"], probabilities, strict=True):
        out = _modules(layer, g)
        g = _mix(p, jax.nn.relu(out)) if options.module_activation == "before_mixing" else jax.nn.relu(_mix(p, out))
    return linear(params["head"], g[0]) if options.head == "routed" else _modules(params["head"], g).sum(0)


# Of the ways to write the following two (rows before modules, or these before rows; products, or sums that XLA fuses),
# this one was the fastest: in the authors' deep network by a third.


def _modules(layer: Parameters, g: Array) -> Array:
    """n layers, ``[n, B, in]`` or ``[1, B, in]``, the same for all, to ``[n, B, out]``."""
    if len(g) == 1:
        return jnp.einsum("bi,nio->nbo", g[0], layer["kernel"]) + layer["bias"][:, None]
    return jnp.einsum("nbi,nio->nbo", g, layer["kernel"]) + layer["bias"][:, None]


def _mix(p: Array, out: Array) -> Array:
    """``[B, targets, n]`` and ``[n, B, d]`` to ``[targets, B, d]``."""
    return jnp.einsum("bij,jbd->ibd", p, out)


def evaluate(params: Parameters, options: SoftModularOptions, dtype: Any, x: Array, task: Array) -> Array:
    """All E members, ``[E, B, out]`` in float32."""
    params, x, task = jax.tree.map(lambda array: array.astype(dtype), (params, x, task))
    return jax.vmap(partial(network, options=options, x=x, task=task))(params).astype(jnp.float32)


def act(params: Parameters, settings: Settings, states: Array, tasks: Array, noise: Array) -> tuple[Array, Array]:
    """Actions ``[B, A]`` and their log-probabilities ``[B]``."""
    mean, log_std = jnp.split(evaluate(params, settings.actor, settings.dtype, states, tasks)[0], 2, -1)
    log_std = jnp.clip(log_std, *LOG_STD)
    actions = jnp.tanh(mean + jnp.exp(log_std) * noise)
    log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(1 - actions**2 + EPSILON)
    return actions, log_prob.sum(-1)


def q_values(params: Parameters, settings: Settings, states: Array, tasks: Array, actions: Array) -> Array:
    """``[E, B]``"""
    inputs = jnp.concatenate([states, actions], -1)
    return evaluate(params, settings.critics, settings.dtype, inputs, tasks)[..., 0]


def clip_members(grads: Parameters, limit: float | None) -> Parameters:
    """Scale the gradients of each member to a norm of at most the limit."""
    if limit is None:
        return grads

    def clip(member: Parameters) -> Parameters:
        scale = jnp.minimum(limit / (optax.tree.norm(member) + EPSILON), 1.0)
        return jax.tree.map(lambda grad: grad * scale, member)

    return jax.vmap(clip)(grads)


def losses_and_gradients(
    state: State, settings: Settings, batch: Batch, noise: Array, next_noise: Array
) -> tuple[State, dict[str, Array], dict[str, Parameters]]:
    """One gradient step.

    :param noise: ``[B, A]``, standard normal, of the actions at the states, and ``next_noise`` at the next states
    :return: the next state, losses, and the gradients after clipping
    """
    adam = optax.adam(settings.learning_rate, eps=settings.adam_epsilon)
    alpha = jnp.exp(state.log_alpha)
    logits = -alpha if settings.weighting == "alpha" else -state.log_alpha
    weights = batch.tasks @ (len(alpha) * jax.nn.softmax(logits))  # [B]
    costs = batch.tasks @ alpha

    next_actions, next_log_prob = act(state.actor, settings, batch.next_states, batch.next_tasks, next_noise)
    next_q = q_values(state.targets, settings, batch.next_states, batch.next_tasks, next_actions)
    discounts = settings.gamma * (1 - batch.dones)
    target = batch.rewards + discounts * (next_q.min(0) - costs * next_log_prob)

    def critic_loss(critics: Parameters) -> Array:
        q = q_values(critics, settings, batch.states, batch.tasks, batch.actions)
        return (weights * (0.5 * (q - target) ** 2).sum(0)).mean()

    loss_of_critics, grads = jax.value_and_grad(critic_loss)(state.critics)
    gradients = {"critics": clip_members(grads, settings.max_grad_norm)}
    updates, critic_optimizer = adam.update(gradients["critics"], state.optimizers[1])
    critics = optax.apply_updates(state.critics, updates)

    def actor_loss(actor: Parameters) -> tuple[Array, Array]:
        actions, log_prob = act(actor, settings, batch.states, batch.tasks, noise)
        q = q_values(critics, settings, batch.states, batch.tasks, actions).min(0)
        return (weights * (costs * log_prob - q)).mean(), log_prob

    (loss_of_actor, log_prob), grads = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
    gradients["actor"] = clip_members(grads, settings.max_grad_norm)
    updates, actor_optimizer = adam.update(gradients["actor"], state.optimizers[0])
    actor = optax.apply_updates(state.actor, updates)

    # Eq. 2 for each task, summed: the gradient of -log(alpha_i) * (mean log-probability + target entropy).
    of_task = (log_prob @ batch.tasks) / batch.tasks.sum(0)
    gradients["log_alpha"] = -(of_task + settings.target_entropy)
    updates, alpha_optimizer = adam.update(gradients["log_alpha"], state.optimizers[2])
    log_alpha = optax.apply_updates(state.log_alpha, updates)

    targets = optax.incremental_update(critics, state.targets, settings.tau)
    optimizers = (actor_optimizer, critic_optimizer, alpha_optimizer)
    losses = {"critics": loss_of_critics, "actor": loss_of_actor}
    return State(actor, critics, targets, log_alpha, optimizers), losses, gradients


def make_step(settings: Settings) -> Callable[[State, Batch, Array], tuple[State, dict[str, Array]]]:
    """The compiled step of a state, which is given away, a batch and a random key."""

    def step(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        noise, next_noise = jax.random.normal(key, (2, *batch.actions.shape))
        after, losses, _ = losses_and_gradients(state, settings, batch, noise, next_noise)
        return after, losses

    return jax.jit(step, donate_argnums=0)


def from_torch(module: SoftModularNetwork, gradients: bool = False) -> Parameters:
    """The parameters of a network of ours, or their gradients."""

    def layer(of: Any) -> Parameters:
        tensors = (of.weight.grad, of.bias.grad) if gradients else (of.weight, of.bias)
        weight, bias = (jnp.array(tensor.detach().numpy()) for tensor in tensors)
        return {"kernel": weight.swapaxes(-1, -2), "bias": bias}

    lists = ("routing_encoder", "routing_down", "routing_up", "module_layers")
    return {
        "state_encoder": [layer(each) for each in module.state_encoder.layers],
        "task_encoder": layer(module.task_encoder),
        **{name: [layer(each) for each in getattr(module, name)] for name in lists},
        "head": layer(module.head),
    }


def state_of(actor: Parameters, critics: Parameters, targets: Parameters, log_alpha: Array) -> State:
    """Before the first step."""
    adam = optax.adam(0.0)  # its state knows no rate
    return State(actor, critics, targets, log_alpha, (adam.init(actor), adam.init(critics), adam.init(log_alpha)))
