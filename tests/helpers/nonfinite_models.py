"""Models whose numbers are made NaN or infinite."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from stable_baselines3.common.logger import configure

from sb3_softmod import MultiTaskSAC, NonFiniteError

M, B = 4, 32
SMALL: dict[str, dict[str, Any]] = {
    "SoftModPolicy": dict(embedding_dim=12, module_dim=8),
    "MixtureOfExpertsPolicy": dict(net_arch=[12, 10], gating_arch=[9]),
    "HardRoutingPolicy": dict(num_layers=2, embedding_dim=12, module_dim=8),
    "CAREPolicy": dict(embedding_dim=6, encoder_arch=[7], net_arch=[12, 10]),
    "FiLMPolicy": dict(embedding_dim=6, net_arch=[12, 10]),
    "BROPolicy": dict(width=12, embedding_dim=6),
}
CHANCE: dict[str, Any] = dict(seed=5)  # of a model that takes a dump again: all numbers are the dump's


def make_model(
    folder: Path | None = None, policy: str = "MTMlpPolicy", rows: int = 50, tasks: int = M, **kwargs: Any
) -> MultiTaskSAC:
    """A small model whose buffer holds transitions of each task; what it logs and dumps goes into the folder."""
    options: dict[str, Any] = dict(
        batch_size=8 * tasks,
        buffer_size=4000,
        policy_kwargs=SMALL.get(policy, dict(net_arch=[12, 10])),
        seed=0,
        device="cpu",
    )
    model = MultiTaskSAC(policy, make_point_mass_env(tasks), **{**options, **kwargs})
    if folder is not None:
        model.set_logger(configure(str(folder), ["csv"]))
    store(model, rows)
    return model


def store(model: MultiTaskSAC, rows: int, rewards: list[float] | None = None) -> None:
    """Transitions of each task, with the rewards of the tasks or random ones."""
    rng, tasks = np.random.default_rng(0), model.num_tasks
    states = np.concatenate([rng.normal(size=(rows + 1, tasks, 2)), np.tile(np.eye(tasks), (rows + 1, 1, 1))], -1)
    states = states.astype(np.float32)
    assert model.replay_buffer is not None
    for row in range(rows):
        reward = rng.normal(size=tasks) if rewards is None else np.array(rewards)
        actions = rng.uniform(-1, 1, (tasks, 2))
        model.replay_buffer.add(states[row], states[row + 1], actions, reward, np.zeros(tasks, bool), [{}] * tasks)


def numbers(model: MultiTaskSAC, but: str = "nothing") -> dict[str, th.Tensor]:
    """Parameters, temperatures and the states of the optimizers."""
    found = {name: p.clone() for name, p in model.policy.state_dict().items()}
    optimizers = dict(actor=model.actor.optimizer, critic=model.critic.optimizer, log_ent_coef=model.ent_coef_optimizer)
    for name, optimizer in optimizers.items():
        if optimizer is not None:
            for index, state in optimizer.state_dict()["state"].items():
                found.update({f"{name}.{index}.{key}": th.as_tensor(value).clone() for key, value in state.items()})
    if model.log_ent_coef is not None:
        found["log_ent_coef"] = model.log_ent_coef.detach().clone()
    return {name: value for name, value in found.items() if not name.startswith(f"{but}.")}


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    """To the bit; NaN is NaN."""
    return one.keys() == other.keys() and all(
        th.equal(value.nan_to_num(123.0), other[name].nan_to_num(123.0)) for name, value in one.items()
    )


def set_parameter(model: MultiTaskSAC, name: str, value: float) -> None:
    dict(model.policy.named_parameters())[name].data.view(-1)[0] = value


def infected_at(model: MultiTaskSAC, step: int, stage: str) -> dict[str, th.Tensor]:
    """Take gradient steps up to one that fails; the numbers before it."""
    model.train(step - 1, B)
    before = numbers(model)
    if stage == "critic":
        store(model, 1000, [0.0, math.inf, 0.0, 0.0])
    elif stage == "temperatures":
        model.log_ent_coef.data[1] = math.inf  # type: ignore[union-attr]
        before["log_ent_coef"] = model.log_ent_coef.detach().clone()  # type: ignore[union-attr]
    else:
        model.lr_schedule = lambda _: 1e30
    return before


def learned_here(error: pytest.ExceptionInfo[NonFiniteError]) -> str:
    """What an error says, but for where the dump is."""
    return re.split(r" The update (?:is in|was read from) ", str(error.value))[0]


def fails_alike(folder: Path, step: int, error: pytest.ExceptionInfo[NonFiniteError], model: MultiTaskSAC) -> None:
    """The dump of the step gives the same error in another model, which applies nothing of it."""
    with pytest.raises(NonFiniteError, match=rf"The update was read from .*nonfinite-{step}\.pt") as again:
        model.replay_dump(folder / f"nonfinite-{step}.pt")
    assert learned_here(again) == learned_here(error)
