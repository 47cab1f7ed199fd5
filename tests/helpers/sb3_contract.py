"""Models that the tests of SB3's contract compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from small_networks import TINY

from sb3_softmod import SoftModSAC
from sb3_softmod.policies import POLICIES

M = 3
every_policy = pytest.mark.parametrize("policy", POLICIES)


def make_model(policy: str = "MTMlpPolicy", envs_per_task: int = 1, **kwargs: Any) -> SoftModSAC:
    options: dict[str, Any] = dict(
        batch_size=2 * M, learning_starts=2 * M, buffer_size=600, policy_kwargs=TINY.get(policy), seed=0, device="cpu"
    )
    return SoftModSAC(policy, make_point_mass_env(M, envs_per_task), **{**options, **kwargs})


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists, by their path."""
    if isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {path: leaf for key, value in items for path, leaf in flat(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def is_same(first: Any, second: Any) -> bool:
    """Bit for bit."""
    return th.equal(first, second) if isinstance(first, th.Tensor) else first == second


def differing(first: SoftModSAC, second: SoftModSAC) -> list[str]:
    """The parameters, the state of the optimizers and the temperatures that are not the same, bit for bit."""
    ours, theirs = (flat({**m.get_parameters(), "log_ent_coef": m.log_ent_coef}) for m in (first, second))
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not is_same(value, theirs[name])]


def observations(copies: int = 1) -> np.ndarray:
    env = make_point_mass_env(M, copies)
    env.seed(5)
    return np.asarray(env.reset())


def actions(model: SoftModSAC) -> np.ndarray:
    return model.predict(observations(), deterministic=True)[0]
