"""The options of :class:`.MultiTaskSAC`, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.acceleration import PRECISIONS
from sb3_softmod.buffers import LARGEST_BUFFER, MultiTaskReplayBuffer
from sb3_softmod.checks import (
    require_choice,
    require_flag,
    require_integer,
    require_names,
    require_number,
    require_seed,
)
from sb3_softmod.errors import ConfigurationError
from sb3_softmod.gradient_surgery import GRADIENT_SURGERIES
from sb3_softmod.loss_weights import LOSS_WEIGHTINGS
from sb3_softmod.nonfinite import ON_NONFINITE
from sb3_softmod.policies import MultiTaskSACPolicy, SingleTaskPolicy

if TYPE_CHECKING:
    from sb3_softmod.multitask_sac import MultiTaskSAC


#: What nearly every option is: its smallest and its largest value.
_INTEGERS: dict[str, tuple[int, int | None]] = {
    "buffer_size": (1, LARGEST_BUFFER),
    "gradient_steps": (-1, None),
    "target_update_interval": (1, None),
    "sde_sample_freq": (-1, None),
    "_stats_window_size": (1, None),
}
_FLAGS = ("overlap", "compile", "use_sde", "use_sde_at_warmup")


def check_policy(policy: Any, known: Mapping[str, type[BasePolicy]]) -> None:
    """Refuse what is no policy of SAC.

    :param known: the policies that have a name
    :raises ConfigurationError: with the nearest names
    """
    if isinstance(policy, str):
        require_choice("policy", policy, known)
    elif not isinstance(policy, type) or not issubclass(policy, SACPolicy):
        raise ConfigurationError(f"policy must be a name or a subclass of SB3's SACPolicy, not {policy!r}.")


def check_device(name: str, device: Any) -> None:
    """Refuse a device that cannot hold a number.

    :raises ConfigurationError: naming the argument and the value
    """
    try:
        th.zeros(1, device=get_device(device)).item()
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ConfigurationError(
            f"{name} must be a device such as 'cpu' or 'cuda', not {device!r} ({reason})."
        ) from error


def check_named_device(name: str, device: Any) -> None:
    """Refuse a device too that was asked for and is not there: SB3 would take the CPU without a word.

    :raises ConfigurationError: naming the argument and the value
    """
    check_device(name, device)
    if device != "auto" and th.device(device).type == "cuda" and not th.cuda.is_available():
        raise ConfigurationError(f"{name} is {device!r}, but PyTorch finds no GPU here: take 'cpu' or 'auto'.")


def check_options(model: MultiTaskSAC) -> None:
    """Refuse options that no device could serve; those of the device are :func:`.decide`'s.

    :raises ConfigurationError: naming the option, with the nearest names that are known
    """
    for name, (least, most) in _INTEGERS.items():
        require_integer(name.lstrip("_"), getattr(model, name), least, most)
    for name in _FLAGS:
        require_flag(name, getattr(model, name))
    for name in ("tau", "gamma"):
        require_number(name, getattr(model, name), 0, 1)
    for name, least in (("batch_size", 1), ("learning_starts", 0)):
        if getattr(model, name) is not None:
            require_integer(name, getattr(model, name), least)
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        require_names(name, getattr(model, name))
    if not callable(model.learning_rate):
        require_number("learning_rate", model.learning_rate, 0)
    if model.target_entropy != "auto":
        require_number("target_entropy", model.target_entropy)
    require_choice("loss_weighting", model.loss_weighting, LOSS_WEIGHTINGS)
    require_choice("precision", model.precision, PRECISIONS)
    require_choice("on_nonfinite", model.on_nonfinite, ON_NONFINITE)
    if not isinstance(model.cuda_graphs, bool) and model.cuda_graphs != "auto":
        raise ConfigurationError(f"cuda_graphs must be 'auto', True or False, not {model.cuda_graphs!r}.")
    if model.max_grad_norm is not None:
        require_number("max_grad_norm", model.max_grad_norm, above=0)
    require_seed(model.seed)
    _check_train_freq(model)
    _check_parts(model)
    if model.gradient_surgery is not None:
        _check_gradient_surgery(model)
    _check_buffer_device(model)


def _check_train_freq(model: MultiTaskSAC) -> None:
    given: Any = model.train_freq
    frequency, unit = given if isinstance(given, tuple) and len(given) == 2 else (given, "step")
    require_integer("train_freq", frequency, 1)
    unit = getattr(unit, "value", unit)  # an enum once SB3 has seen it
    require_choice("unit of train_freq", unit, ("step", "episode"))
    if unit == "episode" and model.env is not None and model.env.num_envs > 1:
        raise ConfigurationError(
            f'train_freq counts episodes of one env alone, and there are {model.env.num_envs}: take (n, "step").'
        )


def _check_parts(model: MultiTaskSAC) -> None:
    """Refuse noise and buffers that are none."""
    if model.action_noise is not None and not isinstance(model.action_noise, ActionNoise):
        raise ConfigurationError(f"action_noise must be an ActionNoise of SB3, not {model.action_noise!r}.")
    buffer = model.replay_buffer_class
    if buffer is not None and not (isinstance(buffer, type) and issubclass(buffer, ReplayBuffer)):
        raise ConfigurationError(f"replay_buffer_class must be a subclass of SB3's ReplayBuffer, not {buffer!r}.")


def check_spaces(owner: str, action_space: spaces.Space) -> None:
    """Refuse actions that SAC cannot learn.

    :param owner: the name of the algorithm
    :raises ConfigurationError: naming the space
    """
    if not isinstance(action_space, spaces.Box):
        raise ConfigurationError(f"{owner} needs continuous actions (a Box), not {action_space}.")
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ConfigurationError(f"{owner} needs actions with finite bounds, not {action_space}.")


def check_observation(observation: Any, space: spaces.Space) -> None:
    """Refuse what is no observation of a space, nor several.

    :param observation: ``[O + M]`` or ``[B, O + M]``
    :raises ConfigurationError: naming shape or type
    """
    try:
        array = np.asarray(observation)
    except ValueError as error:  # of lists that differ in length
        raise ConfigurationError(f"An observation must be an array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ConfigurationError(f"An observation must be an array of numbers, not of {array.dtype}: {observation!r}.")
    if array.shape[-1:] != space.shape or array.ndim > 2:
        raise ConfigurationError(
            f"predict needs an observation {space.shape} or a batch of them (n, {space.shape[0]}), "  # type: ignore[index]
            f"not one of shape {array.shape}."
        )


def check_learn(total_timesteps: Any, callback: Any, log_interval: Any) -> None:
    """Refuse what ``learn`` cannot do.

    :raises ConfigurationError: naming the argument and the value
    """
    if not isinstance(total_timesteps, int):  # 1e6 is a float
        require_number("total_timesteps", total_timesteps, 0)
    require_integer("total_timesteps", int(total_timesteps), 0)
    if log_interval not in (None, "auto"):
        require_integer("log_interval", log_interval, 1)
    for one in callback if isinstance(callback, list) else [callback]:
        if one is not None and not isinstance(one, BaseCallback) and not callable(one):
            raise ConfigurationError(f"callback must be a BaseCallback, a function or a list of them, not {one!r}.")


def _check_gradient_surgery(model: MultiTaskSAC) -> None:
    require_choice("gradient_surgery", model.gradient_surgery, GRADIENT_SURGERIES)
    if not issubclass(model.policy_class, MultiTaskSACPolicy):
        raise ConfigurationError(
            f"gradient_surgery needs a policy of this package, not {model.policy_class.__name__}; MTMlpPolicy "
            "is the plain perceptron."
        )
    if issubclass(model.policy_class, SingleTaskPolicy):
        raise ConfigurationError("The tasks of SingleTaskPolicy share no parameter: gradient_surgery has no use.")
    if not issubclass(model.replay_buffer_class or MultiTaskReplayBuffer, MultiTaskReplayBuffer):
        raise ConfigurationError("gradient_surgery needs the balanced batches of MultiTaskReplayBuffer.")


def _check_buffer_device(model: MultiTaskSAC) -> None:
    if model.buffer_device == "auto":
        return
    check_device("buffer_device", model.buffer_device)
    buffer_class = model.replay_buffer_class or MultiTaskReplayBuffer
    if not str(model.buffer_device).startswith("cpu") and not issubclass(buffer_class, MultiTaskReplayBuffer):
        raise ConfigurationError(f"buffer_device={model.buffer_device!r} needs MultiTaskReplayBuffer.")
