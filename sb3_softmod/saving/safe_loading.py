"""Models from files of others: nothing of the file is unpickled, so that no code in it runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs.normalization_statistics import statistics_from_plain
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.saving.loading import Saved, check_critic, check_networks, restore, with_own_options
from sb3_softmod.saving.models import is_plain, saved_weights
from sb3_softmod.saving.plain_models import (
    COUNTS,
    completed,
    is_plain_model,
    safe_arguments,
    space_from_plain,
    task_names_of_file,
)

#: Below it nothing would be learned.
_NO_RATE = 1e-7


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
    if policy is None and isinstance(facts["policy_class"], str):
        policy = facts["policy_class"]
    for name, value, fact in (("env", env, "observation_space"), ("policy", policy, "policy_class")):
        if value is None and not is_plain(facts[fact]):
            raise ConfigurationError(f"load(..., safe=True) needs {name}=...: in the file it is pickled.")
    kwargs = with_own_options(facts, kwargs)
    for name in ("gradient_surgery", "gradient_surgery_kwargs"):  # it would learn otherwise, and nobody would notice
        if name not in kwargs and not is_plain(facts.get(name)):
            raise ConfigurationError(f"load(..., safe=True) needs {name}=...: in the file it is pickled.")
    plain = safe_arguments(cls, facts)
    if "policy_kwargs" in plain:
        check_networks(plain["policy_kwargs"], kwargs)
        check_critic(facts, kwargs)
    model = cls(policy, env, device=device, _init_setup_model=False, **{**plain, **kwargs})
    if env is None:
        model.observation_space, model.action_space = (
            space_from_plain(name, facts[name]) for name in ("observation_space", "action_space")
        )
        model.task_names, model.n_envs = task_names_of_file(facts), 1
        model.num_tasks = len(model.task_names)
    _take_statistics(model, path, facts.get("normalization"))
    for count in COUNTS:
        if isinstance(facts.get(count), int):
            setattr(model, count, facts[count])
    model._setup_model()
    if env is not None:
        model._acceleration()  # refuses what cannot learn here
    parameters, variables = saved_weights(path, model.device)
    if is_plain_model(facts):
        parameters = completed(parameters, model)
    known = {**plain, **{name: facts.get(name) for name in ("largest_returns", "loss_weighting_progress")}}
    restore(model, Saved(path, known, parameters, variables), kwargs)
    if "learning_rate" not in {**plain, **kwargs} and "actor.optimizer" in parameters:  # a schedule, which is pickled
        model.learning_rate = float(parameters["actor.optimizer"]["param_groups"][0]["lr"])
        model._setup_lr_schedule()
        if model.learning_rate < _NO_RATE:
            warnings.warn(
                f"The learning rate in {path} had come down to {model.learning_rate:g} by a schedule, which is pickled "
                "and not read: pass learning_rate to go on learning.",
                stacklevel=4,
            )
    return model


def _take_statistics(model: Any, path: Any, saved: Any) -> None:
    """Let a model normalise observations as in training, in an env of its own too."""
    if saved is None:
        return
    if is_plain(saved):
        model.normalization = statistics_from_plain(saved)
    elif not isinstance(model.get_vec_normalize_env(), MultiTaskVecNormalize):
        raise ConfigurationError(
            f"The model in {path} was trained on normalised observations, whose statistics an earlier version pickled: "
            "pass an env in a MultiTaskVecNormalize that has them."
        )
