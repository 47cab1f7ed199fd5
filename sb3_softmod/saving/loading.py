"""A model from a file: what of it the caller changes, and which of the two is wrong where they do not go together."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import get_system_info

from sb3_softmod.common.checks import arguments_of, require_names
from sb3_softmod.common.errors import ConfigurationError, EnvError, FileError, SoftModError, nearest
from sb3_softmod.common.saved_files import BROKEN, checked_path, naming
from sb3_softmod.envs.normalization_statistics import statistics_from_plain
from sb3_softmod.learner.temperatures import initial_temperatures

#: Of the arguments of a class, those that ``load`` has itself, or that the file tells.
_NOT_FOR_LOAD = {"self", "policy", "env", "device", "_init_setup_model"}
#: What a model adds to its ``policy_kwargs``.
ADDED = ("num_tasks", "use_sde", "value_atoms", "groups")
#: Arguments of the class that a model has under another name, since SB3 has other things under theirs.
ATTRIBUTES = {"stats_window_size": "_stats_window_size", "critic": "critic_kind", "critic_target": "critic_target_kind"}
#: What RL Zoo has custom objects for whatever the algorithm.
_OF_ANY_ALGORITHM = "clip_range"
#: What earlier versions added to ``replay_buffer_kwargs``.
_ADDED_TO_BUFFER = ("num_tasks", "storage_device")


class Saved(NamedTuple):
    """What is in the file of a model."""

    path: str | Path | Any
    data: dict[str, Any]  # by attribute of the model
    parameters: dict[str, Any]  # state dicts of networks and optimizers
    variables: dict[str, Any]  # other tensors, the temperatures


def read(path: Any, device: th.device | str, custom_objects: dict[str, Any], print_system_info: bool) -> Saved:
    """Read a model. This runs code from the file.

    :param path: the zip file, or a file object
    :param device: for the tensors
    :param custom_objects: in place of what the file has under these names
    :param print_system_info: of this machine, and of that which saved the model
    :raises FileError: naming the file, if it is missing, broken or no model
    """
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
    with naming(path, "model"):
        data, parameters, variables = load_from_zip_file(
            checked_path(path), device=device, custom_objects=custom_objects, print_system_info=print_system_info
        )
        assert data is not None
        own = data.get("replay_buffer_kwargs") or {}
        data["replay_buffer_kwargs"] = {name: value for name, value in own.items() if name not in _ADDED_TO_BUFFER}
        data["normalization"] = statistics_of_file(data.get("normalization"))
        return Saved(path, data, parameters, dict(variables or {}))


def statistics_of_file(saved: Any) -> dict[str, Any] | None:
    """The statistics of the observations in a file, which earlier versions pickled.

    :raises ConfigurationError: for what are none
    """
    if saved is None or any(isinstance(rms, RunningMeanStd) for rms in saved["obs_rms"]):
        return saved
    return statistics_from_plain(saved)


def make(
    cls: Any, saved: Saved, env: Any, device: th.device | str, kwargs: Mapping[str, Any], force_reset: bool
) -> Any:
    """The model of a file, with what the caller gives in place of what the file says.

    :param cls: its class, a :class:`.SavingSAC`
    :param env: to go on in, or None
    :param kwargs: arguments of the class
    :param force_reset: whether the env begins new episodes
    :raises ConfigurationError: for spaces, options or parameters that do not fit
    """
    data, kwargs = {**saved.data, "largest_returns": None, "loss_weighting_progress": None}, dict(kwargs)
    if env is not None:
        env = cls._wrap_env(env, data["verbose"])
        for name in ("observation_space", "action_space"):
            check_space_of(name, data[name], getattr(env, name))
        data["n_envs"] = env.num_envs
        if force_reset:
            data["_last_obs"] = None
    check_networks(data["policy_kwargs"], kwargs)
    check_critic(data, kwargs)
    kwargs.pop("policy_kwargs", None)
    kwargs = with_own_options(data, kwargs)
    for name in ("replay_buffer_kwargs", "loss_weighting_kwargs"):
        if name in kwargs:
            kwargs[name] = kwargs[name] or {}
    kwargs = {ATTRIBUTES.get(name, name): value for name, value in kwargs.items()}

    env = data.get("env") if env is None else env  # a file that was told to include its env
    model = cls(data["policy_class"], env, device=device, _init_setup_model=False)
    vars(model).update(data)
    vars(model).update(kwargs)
    model._setup_model()
    if "_stats_window_size" in kwargs:
        _keep_last_episodes(model)
    restore(model, saved, kwargs)
    if model.use_sde:
        model.policy.reset_noise()  # on this device
    return model


def restore(model: Any, saved: Saved, kwargs: Mapping[str, Any]) -> None:
    """Give a model the parameters, the state of optimizers and of gradient surgery, the temperatures, the scale of
    rewards and the learned weights of a file.

    Temperatures that the caller wants otherwise than the file has them begin anew; so does a scale of rewards, where
    it is of another discount, and so do weights that are learned in another way.

    :param kwargs: arguments of the caller
    :raises ConfigurationError: if they do not fit
    :raises FileError: if there are no temperatures for its tasks, or no returns, or no weights
    """
    _restore_reward_scale(model, saved)
    _restore_learned_weights(model, saved)
    model._surgery, model._surgery_to_continue = None, saved.variables.get("surgery_state") or {}
    parameters, optimizer = dict(saved.parameters), model.ent_coef_optimizer
    anew = "ent_coef" in kwargs and not _same_temperatures(kwargs["ent_coef"], saved.data.get("ent_coef"), model)
    if anew:
        parameters.pop("ent_coef_optimizer", None)
        if optimizer is not None:
            parameters["ent_coef_optimizer"] = optimizer.state_dict()
    model.set_parameters(parameters, device=model.device)
    if anew:
        return
    name = "ent_coef_tensor" if optimizer is None else "log_ent_coef"
    own, given = getattr(model, name), saved.variables.get(name)
    if not isinstance(given, th.Tensor) or given.shape != own.shape:
        raise FileError(f"The file {saved.path} does not hold one temperature for each of {model.num_tasks} tasks.")
    own.data = given.data.to(own)


def _restore_reward_scale(model: Any, saved: Saved) -> None:
    largest = saved.data.get("largest_returns")  # None where the file's rewards had no scale
    if model.reward_scale is None or largest is None or model.gamma != saved.data.get("gamma"):
        return
    if not isinstance(largest, list) or len(largest) != model.num_tasks or not all(map(_is_size, largest)):
        raise FileError(f"The file {saved.path} does not hold the largest return of each of {model.num_tasks} tasks.")
    model.reward_scale.set_largest_returns(largest)


def _restore_learned_weights(model: Any, saved: Saved) -> None:
    model._update_learned_weights()
    if model.learned_weights is None or model.loss_weighting != saved.data.get("loss_weighting"):
        return
    progress = saved.data.get("loss_weighting_progress")
    if progress is None:  # of a model that was never to learn here
        return
    try:
        model.learned_weights.set_progress(progress)
    except ValueError as error:
        raise FileError(
            f"The file {saved.path} does not hold what loss_weighting={model.loss_weighting!r} has learned for "
            f"{model.num_tasks} tasks: {error}."
        ) from error


def _is_size(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _same_temperatures(first: Any, second: Any, model: Any) -> bool:
    """Whether two ``ent_coef`` mean the same: both learned or both fixed, from the same numbers."""
    if isinstance(first, str) != isinstance(second, str):
        return False
    try:
        values = [initial_temperatures(each, model.num_tasks, "uniform") for each in (first, second)]
    except ConfigurationError:
        return False
    return th.equal(*values)


def _keep_last_episodes(model: Any) -> None:
    """Let the statistics of episodes be of another window."""
    window = model._stats_window_size
    model.episode_statistics = model.episode_statistics.last(window)
    for name in ("ep_info_buffer", "ep_success_buffer"):
        if (episodes := getattr(model, name)) is not None:
            setattr(model, name, deque(episodes, window))


# ------------------------------------------------------------------------------------------------------ checks


def check_arguments(cls: type, where: str, given: Iterable[str], more: Iterable[str] = ()) -> None:
    """Refuse arguments that a class has not.

    :param where: the method that got them
    :param more: further arguments of that method
    :raises ConfigurationError: with the nearest names
    """
    known = [*(name for name in arguments_of(cls) if name not in _NOT_FOR_LOAD), *more]
    for name in given:
        if name not in known:
            raise ConfigurationError(f"{cls.__name__}.{where} has no argument {name!r}: {nearest(name, known)}")


def with_own_options(saved: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the caller; those that name another weighting or surgery than the model has leave the options
    of the model's own behind, which the other one may not know.

    :param saved: the attributes of the model, or of its file
    """
    names = ("loss_weighting", "gradient_surgery")
    others = [name for name in names if name in kwargs and kwargs[name] != saved.get(name)]
    return {**{f"{name}_kwargs": None for name in others}, **kwargs}


def check_custom_objects(path: Any, facts: Mapping[str, Any], custom_objects: Any) -> dict[str, Any]:
    """Warn of names that a file does not hold: what is to replace them is not used.

    :return: a dictionary that the caller does not have
    :raises ConfigurationError: for what is no dictionary
    """
    if custom_objects is None:
        return {}
    require_names("custom_objects", custom_objects)
    for name in custom_objects:
        if name not in facts and name != _OF_ANY_ALGORITHM:
            warnings.warn(f"custom_objects: {path} holds no {name!r}: {nearest(name, facts)}", stacklevel=4)
    return dict(custom_objects)


def check_space_of(name: str, saved: Any, found: Any) -> None:
    """Refuse an env with another space than a model.

    :param name: "observation_space" or "action_space"
    :raises ConfigurationError: naming both
    """
    if saved != found:
        raise ConfigurationError(f"The {name.replace('_', ' ')} of the model is {saved}, that of the env {found}.")


def check_networks(saved: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse options of the networks other than those that they were made with.

    :param saved: the ``policy_kwargs`` of the file
    :param kwargs: arguments of the caller
    :raises ConfigurationError: naming the options
    """
    if "use_sde" in kwargs and kwargs["use_sde"] != saved.get("use_sde", False):
        raise ConfigurationError(f"use_sde was {saved.get('use_sde', False)} when its networks were made; leave it so.")
    if "policy_kwargs" not in kwargs:
        return
    given = kwargs["policy_kwargs"] or {}
    require_names("policy_kwargs", given)
    own = {name: value for name, value in saved.items() if name in given or name not in ADDED}
    other = [
        name
        for name in sorted(own.keys() | given.keys())
        if name not in own or name not in given or _listed(own[name]) != _listed(given[name])
    ]
    if other:
        raise ConfigurationError(
            f"its networks were made with policy_kwargs={own}, not {given}, which differs in {', '.join(other)}: leave "
            "policy_kwargs out, the file has them."
        )


def check_critic(saved: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse critics that predict something else than those that were trained.

    :param saved: the attributes of the model, or of its file
    :param kwargs: arguments of the caller
    :raises ConfigurationError: naming the options
    """
    made = saved["policy_kwargs"].get("value_atoms")
    names = ("num_atoms", "v_min", "v_max")
    own = dict(zip(names, made or [saved.get(name) for name in names], strict=True))
    kind = kwargs.get("critic", saved.get("critic_kind", "mse"))
    if "critic" not in kwargs and kind == "hl_gauss":  # saved while there was such a target
        raise ConfigurationError(
            "The model's critics were trained with critic='hl_gauss', which is no more. The networks of "
            "critic='categorical' are the same: load the model with critic='categorical' to go on with that target."
        )
    given = {name: kwargs.get(name, value) for name, value in own.items()}
    if (kind != "mse") != (made is not None) or (made is not None and given != own):
        trained = f"on {made[0]} atoms from {made[1]:g} to {made[2]:g}" if made is not None else "by squared errors"
        raise ConfigurationError(
            f"The model's critics were trained {trained}, not as critic={kind!r} with {given}: leave critic, "
            "num_atoms, v_min and v_max out, the model has them."
        )


def _listed(value: Any) -> Any:
    """With lists for tuples, as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def fitting(path: Any, passed: Iterable[str], load_alone: Callable[[], Any]) -> Iterator[None]:
    """Tell a file that is broken from arguments that do not fit it.

    :param passed: the names of those arguments
    :param load_alone: loads the file without them
    :raises FileError: where the file cannot be loaded without them either
    :raises ConfigurationError: where it can
    """
    passed = list(passed)
    if not passed:
        with naming(path, "model"):
            yield
        return
    try:
        yield
    except (EnvError, FileError):
        raise
    except (SoftModError, *BROKEN) as error:
        load_alone()
        reason = error if isinstance(error, SoftModError) else f"{type(error).__name__}: {error}"
        raise ConfigurationError(
            f"The model in {path} does not go with what was passed to load ({', '.join(passed)}): {reason}"
        ) from error
