"""The same gradient step written in JAX, from the equations: losses, gradients and parameters as ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from accelerated_models import M, make_model

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
jax = pytest.importorskip("jax", reason='pip install "sb3-softmod[bench]"')
pytest.importorskip("optax")

from jax_step import losses_and_gradients  # noqa: E402
from peer_jax import batch_of, gradients_of, networks_of, settings_of, state_of_model  # noqa: E402

ACTION_DIM = 2


@pytest.mark.parametrize(
    ("variant", "preset"),
    [
        ("paper", "deep"),
        ("official", "shallow"),
        pytest.param("paper", "shallow", marks=pytest.mark.slow),  # XLA takes seconds to compile each
        pytest.param("official", "deep", marks=pytest.mark.slow),
    ],
)
def test_one_step_in_jax_is_ours(variant: str, preset: str) -> None:
    """Within 1e-5 in losses, gradients and, after Adam and the targets' step, in all parameters."""
    sizes: dict[str, Any] = dict(variant=variant, preset=preset, embedding_dim=12, module_dim=8)
    # A large epsilon: with the usual one, Adam makes a whole step of any gradient, rounding errors of 0 too.
    adam = dict(optimizer_kwargs=dict(eps=1e-3))
    # The authors' settings clip, Eq. 10 as it is does not.
    method, limit = ("softmod_official", 0.05) if variant == "official" else (f"softmod_{preset}", None)
    model = make_model(method, policy_kwargs={**sizes, **adam}, max_grad_norm=limit, gamma=0.9, tau=0.1)
    settings = settings_of(model)._replace(adam_epsilon=1e-3)
    with th.no_grad():  # routing far from uniform, different tasks of different temperature
        for parameter in networks_of(model)["critics"].parameters():
            parameter.mul_(1.5)
        assert model.log_ent_coef is not None
        model.log_ent_coef.copy_(th.linspace(-2, 0.5, M))
    assert model.replay_buffer is not None
    batch = model.replay_buffer.sample(8 * M)
    state = state_of_model(model)

    th.manual_seed(3)
    noise, next_noise = (th.randn(8 * M, ACTION_DIM).numpy() for _ in range(2))
    th.manual_seed(3)
    learner = model._learner()
    metrics = dict(zip(("actor_loss", "critic_loss"), learner(batch)[[5, 4]].numpy(), strict=True))
    learner.update_targets()
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
    step = jax.jit(losses_and_gradients, static_argnums=1, compiler_options=quick)
    after, losses, gradients = step(state, settings, batch_of(batch, M), noise, next_noise)

    for name, expected in gradients_of(model).items():
        assert_close(gradients[name], expected)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
    assert_close(after[:4], state_of_model(model)[:4])  # all but the optimizers' own
    weights = np.exp(-np.exp(state.log_alpha)) if variant == "paper" else np.exp(-np.asarray(state.log_alpha))
    for name, found in losses.items():
        of_task = metrics["critic_loss" if name == "critics" else "actor_loss"]
        np.testing.assert_allclose(found, (weights / weights.sum() * of_task).sum(), rtol=1e-5)


def assert_close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
