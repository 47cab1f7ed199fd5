"""Models from files of others: nothing of the file is unpickled, so that no code in it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.saving.loading import ATTRIBUTES, Saved, check_critic, check_networks, restore
from sb3_softmod.saving.models import is_plain, saved_weights

#: Arguments that a file gives where it has them in plain text and the caller does not.
SAFE_ARGUMENTS = (
    "learning_rate",
    "learning_starts",
    "batch_size",
    "tau",
    "gamma",
    "gradient_steps",
    "n_steps",
    "ent_coef",
    "target_update_interval",
    "target_entropy",
    "critic",
    "num_atoms",
    "v_min",
    "v_max",
    "critic_target",
    "policy_delay",
    "loss_weighting",
    "max_grad_norm",
    "gradient_surgery",
    "reward_scaling",
    "policy_kwargs",
)
#: How far the training was.
_COUNTS = ("num_timesteps", "_n_updates", "_episode_num", "nonfinite_updates")


def load_safely(
    cls: Any,
    path: str | Path | Any,
    facts: Mapping[str, Any],
    env: Any,
    policy: str | type[SACPolicy] | None,
    device: th.device | str,
    kwargs: dict[str, Any],
) -> Any:
    """``cls.load(..., safe=True)``.

    :param facts: of :func:`.saved_facts`
    :param env: what the model is made for
    :param kwargs: further arguments of the class
    :raises ConfigurationError: for parameters that do not fit, or what only a pickle in the file could tell
    """
    for name, value in (("env", env), ("policy", policy)):
        if value is None:
            raise ConfigurationError(f"load(..., safe=True) needs {name}=...: in the file it is pickled.")
    attributes = {name: ATTRIBUTES.get(name, name) for name in SAFE_ARGUMENTS}
    plain = {name: facts[own] for name, own in attributes.items() if own in facts and is_plain(facts[own])}
    if "policy_kwargs" in plain:
        check_networks(plain["policy_kwargs"], kwargs)
        check_critic(facts, kwargs)
    model = cls(policy, env, device=device, **{**plain, **kwargs})
    normalised = facts.get("normalization") is not None
    if normalised and not isinstance(model.get_vec_normalize_env(), MultiTaskVecNormalize):
        raise ConfigurationError(
            f"The model in {path} was trained on normalised observations, whose statistics are pickled: pass an env in "
            "a MultiTaskVecNormalize that has them."
        )
    parameters, variables = saved_weights(path, model.device)
    known = {**plain, "largest_returns": facts.get("largest_returns")}
    restore(model, Saved(path, known, parameters, variables), kwargs)
    for count in _COUNTS:
        if isinstance(facts.get(count), int):
            setattr(model, count, facts[count])
    return model
