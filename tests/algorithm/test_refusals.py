"""What MultiTaskSAC refuses: arguments, envs, and numbers of envs that are not finite."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from point_mass import PointMass, make_point_mass_env, make_task
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softmod import ConfigurationError, NonFiniteError, SoftModSAC, TaskEnv

SMALL: dict[str, Any] = dict(embedding_dim=12, module_dim=8)


def make_model(**kwargs: Any) -> SoftModSAC:
    return SoftModSAC("SoftModPolicy", make_point_mass_env(4), **{"batch_size": 32, "policy_kwargs": SMALL, **kwargs})


class Discrete(PointMass):
    def __init__(self, goal: int) -> None:
        super().__init__(goal)
        self.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]


class WideAction(PointMass):
    def __init__(self, goal: int) -> None:
        super().__init__(goal)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


class Broken(PointMass):
    """Sends a NaN at its seventh step."""

    def __init__(self, goal: int, where: str) -> None:
        super().__init__(goal)
        self.where, self.t = where, 0

    def step(self, action: np.ndarray) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.t += 1
        if self.t == 7:
            if self.where == "reward":
                reward = math.nan
            else:
                obs = obs + np.float32(np.inf)
        return obs, reward, terminated, truncated, info


def vec(*envs: PointMass) -> DummyVecEnv:
    names = [f"task-{i}" for i in range(len(envs))]
    return DummyVecEnv([partial(TaskEnv, gym.wrappers.TimeLimit(env, 20), i, names) for i, env in enumerate(envs)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(batch_size=30), r"batch_size=30 is not divisible by the 4 tasks.* take 28 or 32"),
        (dict(ent_coef=[0.1, 0.2]), "ent_coef lists 2 temperatures, but there are 4 tasks"),
        (dict(ent_coef=[0.1]), "ent_coef lists 1 temperatures, but there are 4 tasks"),
        (dict(ent_coef=[0.1, 0.2, 0.3, math.nan]), "ent_coef must be"),
        (dict(ent_coef="automatic"), "ent_coef must be .* not 'automatic'"),
        (dict(ent_coef="auto_-1"), "ent_coef must be"),
        (dict(ent_coef=-0.1), "ent_coef must be"),
        (dict(ent_coef=0.0, loss_weighting="log_alpha"), "ent_coef must be"),
        (dict(loss_weighting="alfa"), "Unknown loss_weighting 'alfa': did you mean 'alpha'"),
        (dict(max_grad_norm=0), "max_grad_norm must be positive"),
        (dict(num_tasks=5), "The env has 4 tasks, but the model 5"),
        (dict(policy_kwargs=dict(num_tasks=3)), "The env has 4 tasks, but the model 3"),
        (dict(policy_kwargs=dict(layers=3)), "Unknown option 'layers' of SoftModPolicy"),
        (dict(policy_kwargs=dict(variant="papers")), "Unknown variant 'papers': did you mean 'paper'"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(**kwargs)


@pytest.mark.parametrize(("name", "message"), [("MT11", "did you mean 'MT10'"), ("reach", "did you mean 'reach-v3'")])
def test_a_misspelt_env_is_refused_with_the_nearest_names(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SoftModSAC("SoftModPolicy", name)
    make_model().save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=message):
        SoftModSAC.load(tmp_path / "model", env=name)


def test_bad_envs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="The environment has no tasks: it lacks the attribute 'num_tasks'"):
        SoftModSAC("SoftModPolicy", "Pendulum-v1")
    with pytest.raises(ConfigurationError, match="'task-0' and 'task-1' differ in their action space"):
        SoftModSAC("SoftModPolicy", vec(PointMass(0), WideAction(1)))
    with pytest.raises(ConfigurationError, match=r"needs continuous actions \(a Box\), not Discrete\(3\)"):
        SoftModSAC("SoftModPolicy", vec(Discrete(0), Discrete(1)))
    disagreeing = DummyVecEnv([partial(make_task, 0, 2), partial(make_task, 1, 3)])
    with pytest.raises(ConfigurationError, match=r"disagree on the number of tasks: \[2, 3\]"):
        SoftModSAC("SoftModPolicy", disagreeing)
    with pytest.raises(ConfigurationError, match="pass an env"):
        SoftModSAC("SoftModPolicy", None)
    with pytest.raises(ConfigurationError, match="VecNormalize normalises the one-hot task"):
        SoftModSAC("SoftModPolicy", VecNormalize(make_point_mass_env(2)))


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_non_finite_numbers_of_an_env_stop_the_run(where: str) -> None:
    env = vec(PointMass(0), Broken(1, where), PointMass(2))
    model = SoftModSAC("SoftModPolicy", env, policy_kwargs=SMALL, batch_size=12, learning_starts=9)
    with pytest.raises(NonFiniteError, match=rf"The {where} of task 'task-1' \(env 1\) .* environment step 21"):
        model.learn(300)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 18  # nothing of the seventh step
    assert all(p.isfinite().all() for p in model.policy.parameters())
