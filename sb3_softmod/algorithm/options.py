"""The options of :class:`.MultiTaskSAC`, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import CnnPolicy, MultiInputPolicy, SACPolicy
from torch import nn

from sb3_softmod.algorithm.weighting_options import check_loss_weighting
from sb3_softmod.common.checks import (
    arguments_of,
    require_choice,
    require_flag,
    require_integer,
    require_names,
    require_number,
    require_seed,
)
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError, nearest
from sb3_softmod.common.task_observation import split
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.learner.aggregators import GRADIENT_SURGERIES
from sb3_softmod.learner.critic_objectives import CRITIC_TARGETS, CRITICS
from sb3_softmod.learner.options import ON_NONFINITE, PRECISIONS
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.learner.reward_scale import REWARD_SCALINGS
from sb3_softmod.learner.task_rings import LARGEST_BUFFER
from sb3_softmod.learner.temperatures import target_entropy_of
from sb3_softmod.policies import POLICIES, MultiTaskSACPolicy, SingleTaskPolicy
from sb3_softmod.policies.value_atoms import require_atoms

#: What nearly every option is: its smallest and its largest value.
_INTEGERS: dict[str, tuple[int, int | None]] = {
    "buffer_size": (1, LARGEST_BUFFER),
    "gradient_steps": (-1, None),
    "target_update_interval": (1, None),
    "sde_sample_freq": (-1, None),
    "_stats_window_size": (1, None),
}
#: By how much the shares of tasks may miss 1.
TOLERANCE = 1e-3
_FLAGS = ("overlap", "use_sde", "use_sde_at_warmup", "policy_at_warmup")
#: What a replay buffer gets from the model, and where a user says it.
_OF_THE_MODEL = {
    "buffer_size": "it is an argument of the model",
    "device": "it is an argument of the model",
    "observation_space": "the env says it",
    "action_space": "the env says it",
    "n_envs": "the env says it",
    "optimize_memory_usage": "of SB3's buffers, the model knows the plain form alone",
}
#: What :class:`.MultiTaskReplayBuffer` gets besides.
_OF_THE_MODEL_FOR_OURS = {
    "num_tasks": "the env says it",
    "storage_device": "it is buffer_device of the model",
    "n_steps": "it is an argument of the model",
    "gamma": "it is an argument of the model",
}


def check_policy(policy: Any, known: Mapping[str, type[BasePolicy]]) -> None:
    """Refuse what is no policy of SAC.

    :param known: the policies that have a name
    :raises ConfigurationError: with the nearest names
    """
    for structured in (CnnPolicy, MultiInputPolicy):
        named = isinstance(policy, str) and policy == structured.__name__
        if named or (isinstance(policy, type) and issubclass(policy, structured)):
            raise ConfigurationError(
                f"The policy {structured.__name__} reads images or dictionaries, but observations with a one-hot task "
                f"are flat: take 'MlpPolicy' or one of {', '.join(map(repr, POLICIES))}."
            )
    if isinstance(policy, str):
        require_choice("policy", policy, known)
    elif not isinstance(policy, type) or not issubclass(policy, SACPolicy):
        raise ConfigurationError(f"policy must be a name or a subclass of SB3's SACPolicy, not {policy!r}.")


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse options that no device could serve; those of the device are :func:`.decide`'s.

    :param given: the attributes of a model
    :raises ConfigurationError: naming the option, with the nearest names that are known
    """
    for name, (least, most) in _INTEGERS.items():
        require_integer(name.lstrip("_"), given[name], least, most)
    for name in _FLAGS:
        require_flag(name, given[name])
    for name in ("tau", "gamma"):
        require_number(name, given[name], 0, 1)
    for name, least in (("batch_size", 1), ("learning_starts", 0)):
        if given[name] is not None:
            require_integer(name, given[name], least)
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        require_names(name, given[name])
    if not callable(given["learning_rate"]):
        require_number("learning_rate", given["learning_rate"], 0)
    target_entropy_of(given["target_entropy"], 1)
    check_learning(given)
    _check_critic(given)
    check_reward_scaling(given["reward_scaling"], given["gamma"], given["_vec_normalize_env"])
    require_choice("precision", given["precision"], PRECISIONS)
    require_choice("on_nonfinite", given["on_nonfinite"], ON_NONFINITE)
    for name in ("compile", "cuda_graphs"):
        value = given[name]  # an array is equal to nothing
        if not isinstance(value, bool) and not (isinstance(value, str) and value == "auto"):
            raise ConfigurationError(f"{name} must be 'auto', True or False, not {value!r}.")
    _check_max_grad_norm(given["max_grad_norm"])
    require_seed(given["seed"])
    _check_train_freq(given)
    _check_noise(given["action_noise"], given["action_space"])
    _check_buffer(given)
    _check_gradient_surgery(given)
    _check_buffer_device(given["buffer_device"], given["replay_buffer_class"])


def check_learning(given: Mapping[str, Any]) -> None:
    """Refuse options of the gradient step, which count anew in each call of ``train``: a user may have changed them.

    :param given: the attributes of a model
    :raises ConfigurationError: naming the option, with the nearest names that are known
    """
    require_choice("critic", given["critic_kind"], CRITICS)
    require_choice("critic_target", given["critic_target_kind"], CRITIC_TARGETS)
    require_integer("policy_delay", given["policy_delay"], 1)
    if given["reward_scaling"] is not None:
        require_number("v_max", given["v_max"], above=0)
    check_loss_weighting(given)


def _check_critic(given: Mapping[str, Any]) -> None:
    kind, made = given["critic_kind"], given["policy_kwargs"].get("value_atoms")
    atoms = require_atoms(given["num_atoms"], given["v_min"], given["v_max"])
    if kind != "mse" and not issubclass(given["policy_class"], MultiTaskSACPolicy):
        raise ConfigurationError(
            f"critic={kind!r} needs a policy of this package, not {given['policy_class'].__name__}; MTMlpPolicy is the "
            "plain perceptron."
        )
    if made is not None and (kind == "mse" or tuple(made) != atoms):
        raise ConfigurationError(
            f"policy_kwargs holds value_atoms={made}, but the critics are critic={kind!r} with num_atoms="
            f"{atoms.num_atoms}, v_min={atoms.v_min:g} and v_max={atoms.v_max:g}: leave value_atoms out."
        )


def _check_max_grad_norm(given: Any) -> None:
    if given is None:
        return
    if isinstance(given, (list, tuple)) and len(given) != 2:
        raise ConfigurationError(
            f"max_grad_norm must be one number, or two: of the actor and of each critic, not {given!r}."
        )
    for norm in given if isinstance(given, (list, tuple)) else [given]:
        require_number("max_grad_norm", norm, above=0)


def _check_train_freq(given: Mapping[str, Any]) -> None:
    train_freq, env = given["train_freq"], given["env"]
    frequency, unit = train_freq if isinstance(train_freq, tuple) and len(train_freq) == 2 else (train_freq, "step")
    require_integer("train_freq", frequency, 1)
    unit = getattr(unit, "value", unit)  # an enum once SB3 has seen it
    require_choice("unit of train_freq", unit, ("step", "episode"))
    if unit == "episode" and env is not None and env.num_envs > 1:
        raise ConfigurationError(
            f'train_freq counts episodes of one env alone, and there are {env.num_envs}: take (n, "step").'
        )


def _check_noise(noise: Any, action_space: spaces.Space) -> None:
    """Refuse noise that is none, or that is not of the actions' shape."""
    if noise is None:
        return
    if not isinstance(noise, ActionNoise):
        raise ConfigurationError(f"action_noise must be an ActionNoise of SB3, not {noise!r}.")
    base = noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise
    generator = np.random.get_state()  # which SB3's noises draw from
    try:
        shape = np.shape(deepcopy(base)())
    except Exception as error:  # whatever a noise of a user's raises, or SB3's of no numbers
        raise ConfigurationError(f"action_noise {base!r} raised {type(error).__name__}: {error}") from error
    finally:
        np.random.set_state(generator)
    if shape != action_space.shape:
        raise ConfigurationError(
            f"action_noise draws numbers of shape {shape}, but an action has the shape {action_space.shape}: "
            "take NormalActionNoise(np.zeros(n), 0.1 * np.ones(n)) for n numbers."
        )


def _check_buffer(given: Mapping[str, Any]) -> None:
    """Refuse a replay buffer that is none, and arguments that it does not take, or that the model gives it."""
    cls = given["replay_buffer_class"]
    cls = MultiTaskReplayBuffer if cls is None else cls
    if not (isinstance(cls, type) and issubclass(cls, ReplayBuffer)):
        raise ConfigurationError(f"replay_buffer_class must be a subclass of SB3's ReplayBuffer, not {cls!r}.")
    if issubclass(cls, DictReplayBuffer):
        raise ConfigurationError(f"replay_buffer_class {cls.__name__} is for observations that are dictionaries.")
    of_the_model = _OF_THE_MODEL | (_OF_THE_MODEL_FOR_OURS if issubclass(cls, MultiTaskReplayBuffer) else {})
    known = [name for name in arguments_of(cls) if name != "self" and name not in of_the_model]
    for name in given["replay_buffer_kwargs"]:
        if name in of_the_model:
            raise ConfigurationError(f"replay_buffer_kwargs must not hold {name!r}: {of_the_model[name]}.")
        if name not in known:
            raise ConfigurationError(
                f"replay_buffer_kwargs holds {name!r}, which {cls.__name__} does not take: {nearest(name, known)}"
            )
    check_n_steps(given["n_steps"], cls)
    check_normalized_rewards(given["_vec_normalize_env"], cls)


def check_n_steps(n_steps: Any, buffer_class: type[ReplayBuffer]) -> None:
    """Refuse returns of several steps from a replay buffer that would not make them.

    :raises ConfigurationError: saying what to take instead
    """
    require_integer("n_steps", n_steps, 1)
    if n_steps > 1 and not issubclass(buffer_class, MultiTaskReplayBuffer):
        raise ConfigurationError(
            f"n_steps={n_steps} is for MultiTaskReplayBuffer, not for {buffer_class.__name__}: leave it 1. SB3's "
            f"NStepReplayBuffer takes its own, replay_buffer_kwargs=dict(n_steps={n_steps})."
        )


def check_normalized_rewards(env: Any, buffer_class: type[ReplayBuffer] | None) -> None:
    """Refuse a replay buffer that would scale rewards by the returns of other tasks.

    :param env: the normalisation that the model learns in, if there is one
    :raises ConfigurationError: saying what to take instead
    """
    by_task = isinstance(env, MultiTaskVecNormalize) and env.norm_reward
    if by_task and not issubclass(buffer_class or MultiTaskReplayBuffer, MultiTaskReplayBuffer):
        raise ConfigurationError(
            "MultiTaskVecNormalize scales the rewards of each task by its own returns, and only MultiTaskReplayBuffer "
            "says of which task a reward is: leave replay_buffer_class out, or pass norm_reward=False."
        )


def check_reward_scaling(given: Any, gamma: float, normalization: VecNormalize | None) -> None:
    """Refuse a scaling of rewards that is unknown, infinite, or not the only one.

    :param normalization: of the env, if there is one
    :raises ConfigurationError: saying what to do instead
    """
    if given is None:
        return
    require_choice("reward_scaling", given, REWARD_SCALINGS)
    if gamma == 1:
        raise ConfigurationError(
            "reward_scaling='per-task' needs a gamma below 1: with gamma=1 the returns that it divides by are infinite."
        )
    if normalization is not None and normalization.norm_reward:
        raise ConfigurationError(
            f"reward_scaling='per-task' scales rewards that {type(normalization).__name__} has scaled already: pass "
            "norm_reward=False there, or leave reward_scaling out."
        )


def check_spaces(owner: str, action_space: spaces.Space) -> None:
    """Refuse actions that SAC cannot learn.

    :param owner: the name of the algorithm
    :raises ConfigurationError: naming the space, and the dimensions that are constant
    """
    if not isinstance(action_space, spaces.Box):
        raise ConfigurationError(
            f"{owner} needs continuous actions (a Box), not {action_space}. (PPO and DQN take discrete ones, with "
            "SoftModularExtractor for the network.)"
        )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ConfigurationError(f"{owner} needs actions with finite bounds, not {action_space}.")
    if not np.issubdtype(action_space.dtype, np.floating):
        raise ConfigurationError(
            f"{owner} needs actions of a float type, not {action_space} of {action_space.dtype}: give the env a float "
            "Box, and round there (gymnasium.wrappers.TransformAction)."
        )
    with np.errstate(over="ignore"):
        ranges = action_space.high - action_space.low
    for what, dimensions in (("constant", ranges == 0), ("too wide for their type", np.isinf(ranges))):
        if dimensions.any():
            where = [index[0] if len(index) == 1 else tuple(index) for index in np.argwhere(dimensions).tolist()]
            raise ConfigurationError(
                f"{owner} scales actions by their ranges, but dimension {', '.join(map(str, where))} of {action_space} "
                f"is {what}: leave it out of the action space, and let the env add it "
                "(gymnasium.wrappers.TransformAction)."
            )


def check_observation(observation: Any, space: spaces.Space, num_tasks: int) -> None:
    """Refuse what is no observation of a space, nor several, or names no task.

    :param observation: ``[O + M]`` or ``[B, O + M]``
    :param num_tasks: M
    :raises ConfigurationError: naming shape, type or row
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
    if not array.size:
        raise ConfigurationError("predict needs at least one observation, and this batch holds none.")
    task = split(array, num_tasks)[1]
    sums = task @ np.ones(num_tasks, np.float32)  # at each step of acting: it must take microseconds
    if not (task.min() >= 0 and sums.min() > 1 - TOLERANCE and sums.max() < 1 + TOLERANCE):  # nor NaN
        rows = np.atleast_2d(task)
        wrong = int(np.flatnonzero(~((rows >= 0).all(1) & (np.abs(rows.sum(1) - 1) < TOLERANCE)))[0])
        raise ConfigurationError(
            f"Observation {wrong} ends in no task: its last {num_tasks} entries must be a one-hot task, or the shares "
            f"of several tasks, which sum to 1, not {np.array2string(rows[wrong], precision=3, threshold=12)}."
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


def _check_gradient_surgery(given: Mapping[str, Any]) -> None:
    """Refuse what no learner could use; the rest is :class:`.Surgery`'s, which needs TorchJD."""
    surgery, options, policy_class = given["gradient_surgery"], given["gradient_surgery_kwargs"], given["policy_class"]
    if options is not None:
        require_names("gradient_surgery_kwargs", options)
    if surgery is None:
        if options:
            raise ConfigurationError(f"gradient_surgery_kwargs={options!r} has no use without gradient_surgery.")
        return
    if isinstance(surgery, str):
        require_choice("gradient_surgery", surgery, GRADIENT_SURGERIES)
    elif not isinstance(surgery, nn.Module):
        raise ConfigurationError(f"gradient_surgery must be a name or an Aggregator of TorchJD, not {surgery!r}.")
    if not issubclass(policy_class, MultiTaskSACPolicy):
        raise ConfigurationError(
            f"gradient_surgery needs a policy of this package, not {policy_class.__name__}; MTMlpPolicy "
            "is the plain perceptron."
        )
    if issubclass(policy_class, SingleTaskPolicy):
        raise ConfigurationError("The tasks of SingleTaskPolicy share no parameter: gradient_surgery has no use.")
    if not issubclass(given["replay_buffer_class"] or MultiTaskReplayBuffer, MultiTaskReplayBuffer):
        raise ConfigurationError("gradient_surgery needs the balanced batches of MultiTaskReplayBuffer.")


def _check_buffer_device(device: Any, buffer_class: type[ReplayBuffer] | None) -> None:
    if device == "auto":
        return
    if str(device).partition(":")[0] == "mps":
        raise ConfigurationError("buffer_device must be the CPU or a CUDA GPU, not 'mps', which has no float64.")
    buffer_class = buffer_class or MultiTaskReplayBuffer
    if not str(device).startswith("cpu") and not issubclass(buffer_class, MultiTaskReplayBuffer):
        raise ConfigurationError(f"buffer_device={device!r} needs MultiTaskReplayBuffer.")
    check_device("buffer_device", device)
