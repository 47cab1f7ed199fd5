"""BRC's policy: the actor reads the task embedding of the critics, which alone train it."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from accelerated_models import needs_gpu
from gymnasium import spaces
from nonfinite_models import B, M, make_model
from stable_baselines3 import SAC

from sb3_softmod import MultiTaskSAC
from sb3_softmod.networks import BroNetwork
from sb3_softmod.policies import BROPolicy, MultiTaskActor

SPACE = spaces.Box(-np.inf, np.inf, (6,), np.float32)  # 2 entries and 4 tasks
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
OBS = th.cat([th.linspace(-1, 1, 8).view(4, 2), th.eye(4)], 1)


def make_policy(**kwargs: Any) -> BROPolicy:
    th.manual_seed(0)
    return BROPolicy(SPACE, ACTIONS, lambda _: 1e-3, num_tasks=4, **{"width": 12, "embedding_dim": 6, **kwargs})


def embedding(policy: Any, of: str = "critic") -> th.Tensor:
    """``[E, M, embedding_dim]``."""
    return getattr(policy, of).network.task_embedding


def act(policy: Any) -> th.Tensor:
    with th.no_grad():
        return policy.actor(OBS, deterministic=True)


def reads_the_critics(policy: Any) -> bool:
    """Whether the actor acts as one whose own embedding is the first critic's, and otherwise with another."""
    before, kept = act(policy), embedding(policy).detach().clone()
    own = MultiTaskActor(SPACE, ACTIONS, 4, BroNetwork, policy.network_kwargs)
    own.load_state_dict({**policy.actor.state_dict(), "network.task_embedding": kept[:1]})
    with th.no_grad():
        same = th.equal(own(OBS, deterministic=True), before)
        embedding(policy).data.add_(th.linspace(-1, 1, kept.numel()).view(kept.shape))
        moves = bool((act(policy) - before).abs().amax(1).min() > 1e-4)
        embedding(policy).data.copy_(kept)
    return same and moves


def test_the_actor_owns_no_embedding() -> None:
    policy = make_policy()
    assert reads_the_critics(policy)
    names = [name for name, _ in policy.actor.named_parameters()]
    assert "network.head.weight" in names
    assert not any("embedding" in name for name in [*names, *policy.actor.state_dict()])
    embeddings = [name for name in policy.state_dict() if name.endswith("task_embedding")]
    assert embeddings == ["critic.network.task_embedding", "critic_target.network.task_embedding"]
    for module in (policy.actor, policy.critic):
        (group,) = module.optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters()]
    assert not th.equal(embedding(policy)[0], embedding(policy)[1])
    assert embedding(policy, "critic_target").data_ptr() != embedding(policy).data_ptr()


def test_the_critics_loss_alone_reaches_it() -> None:
    policy = make_policy()
    actions, log_prob = policy.actor.action_log_prob(OBS)
    (log_prob.sum() + actions.square().sum()).backward()
    assert embedding(policy).grad is None
    for name, parameter in policy.actor.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    th.cat(policy.critic(OBS, actions.detach())).square().sum().backward()
    grad = embedding(policy).grad
    assert grad is not None
    assert (grad != 0).any(-1).all()  # of both critics, for all tasks


def test_optimizer_options_reach_both() -> None:
    policy = make_policy(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.25, betas=(0.5, 0.9)))
    for module in (policy.actor, policy.critic):
        assert type(module.optimizer) is th.optim.AdamW
        (group,) = module.optimizer.param_groups
        assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.25, (0.5, 0.9))


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "save", "load_state_dict", "to"])
def test_copies_are_tied_to_their_own_critics(copied: str, tmp_path: Path) -> None:
    policy = make_policy()
    expected = act(policy)
    with th.no_grad():
        embedding(policy).normal_()
    expected, kept = act(policy), embedding(policy).detach().clone()
    copy: BROPolicy
    if copied == "deepcopy":
        copy = deepcopy(policy)
    elif copied == "pickle":
        policy._dummy_schedule = policy.lr_schedule = None  # type: ignore[assignment,method-assign]  # a lambda
        copy = pickle.loads(pickle.dumps(policy))
    elif copied == "save":
        policy.save(str(tmp_path / "policy.pth"))
        copy = BROPolicy.load(str(tmp_path / "policy.pth"))
    elif copied == "load_state_dict":
        copy = make_policy()
        copy.load_state_dict(policy.state_dict())
    else:
        copy = policy.to("cpu").to(th.float32)
    assert th.equal(act(copy), expected)
    assert reads_the_critics(copy)
    if copy is not policy:
        with th.no_grad():
            embedding(copy).normal_()
        assert th.equal(act(policy), expected)
        assert th.equal(embedding(policy), kept)
        assert not th.equal(act(copy), expected)


# ------------------------------------------------------------------------------- learning


LEARNING: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "surgery and clipping": dict(gradient_surgery="pcgrad", max_grad_norm=1.0),
    "bf16": dict(precision="bf16"),
}


@pytest.mark.parametrize("options", [*LEARNING, pytest.param("compiled", marks=pytest.mark.slow)])
def test_learning_moves_it_in_critics_and_targets(options: str) -> None:
    model = make_model(policy="BROPolicy", tau=0.25, **LEARNING.get(options, dict(compile=True)))
    start = embedding(model.policy).detach().clone()
    model.train(1, B)
    learned, target = embedding(model.policy).detach().clone(), embedding(model.policy, "critic_target")
    assert (learned - start).abs().amax(-1).min() > 1e-5  # of both critics, for all tasks
    th.testing.assert_close(target, start + 0.25 * (learned - start), rtol=0, atol=1e-6)
    model.train(4, B)
    assert reads_the_critics(model.policy)
    state = model.policy.actor.optimizer.state_dict()["state"]
    assert len(state) == len(list(model.policy.actor.parameters()))


def test_compiled_steps_read_what_the_critics_learned() -> None:
    """The embedding is no constant to the compiler."""
    policy = make_policy()
    th._dynamo.reset()
    function = th.compile(policy.actor.get_action_dist_params, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        with th.no_grad():
            embedding(policy).normal_()
        expected, found = policy.actor.get_action_dist_params(OBS), function(OBS)
        th.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        found[0].sum().backward()
    assert embedding(policy).grad is None


def test_a_saved_model_goes_on(tmp_path: Path) -> None:
    model = make_model(policy="BROPolicy")
    model.train(3, B)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MultiTaskSAC.load(tmp_path / "model", model.get_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    for each in (model, loaded):
        th.manual_seed(1)
        np.random.seed(1)
        each.train(3, B)
    assert th.equal(embedding(loaded.policy), embedding(model.policy))
    assert th.equal(act(loaded.policy), act(model.policy))
    assert reads_the_critics(loaded.policy)

    other = make_model(policy="BROPolicy", seed=1)
    other.set_parameters(tmp_path / "model.zip")
    assert not th.equal(act(other.policy), act(model.policy))  # which went on
    assert reads_the_critics(other.policy)


def test_in_plain_sac_only_the_critics_learn_it() -> None:
    env = make_model(policy="BROPolicy").get_env()
    assert env is not None
    options = dict(num_tasks=M, width=12, embedding_dim=6, n_critics=3)
    model = SAC(BROPolicy, env, policy_kwargs=options, learning_starts=20, batch_size=16, seed=0, device="cpu")
    model.learn(60)
    assert reads_the_critics(model.policy)


@needs_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_on_a_gpu(cuda_graphs: bool) -> None:
    model = make_model(policy="BROPolicy", device="cuda", cuda_graphs=cuda_graphs)
    start = embedding(model.policy).detach().clone()
    for _ in range(8):  # the last of them are replayed
        before = embedding(model.policy).detach().clone()
        model.train(1, B)
        assert not th.equal(embedding(model.policy), before)
    assert (embedding(model.policy) - start).abs().amax(-1).min() > 1e-4
    assert reads_the_critics(model.policy.to("cpu"))
