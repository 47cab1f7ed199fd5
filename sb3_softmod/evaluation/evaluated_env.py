"""The envs that a model is evaluated in: what they must be, whose statistics they take, and whose episodes they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_softmod.algorithm.mixed_model import MixedModel
from sb3_softmod.common.errors import ConfigurationError, EnvError, SoftModError
from sb3_softmod.common.task_observation import num_tasks_of, task_names_of
from sb3_softmod.envs.normalize import MultiTaskVecNormalize, check_normalization


def statistics_of(model: Any) -> dict[str, Any] | None:
    """The statistics of the :class:`.MultiTaskVecNormalize` that a model learned with; None for one without."""
    normalize = normalize_of(model)
    if isinstance(normalize, MultiTaskVecNormalize):
        return normalize.statistics()
    return getattr(model, "normalization", None)


def learned_normalized(model: Any) -> bool | None:
    """Whether a model learned from normalised observations; None for one that does not know."""
    normalize = normalize_of(model)
    if normalize is not None:
        return normalize.norm_obs
    if hasattr(model, "normalization"):
        return model.normalization is not None and model.normalization["norm_obs"]
    return None if _env_of(model) is None else False


def take_statistics(model: Any, env: VecEnv) -> None:
    """Let the :class:`.MultiTaskVecNormalize` of an env, if it has one, do to observations what that of a model does.

    Statistics that saw no observation are not taken: the model's parameters then came from elsewhere.
    """
    normalize, statistics = unwrap_vec_normalize(env), statistics_of(model)
    if not isinstance(normalize, MultiTaskVecNormalize) or statistics is None:
        return
    if not statistics["norm_obs"] or any(rms.count >= 1 for rms in statistics["obs_rms"]):
        normalize.set_statistics({**statistics, "norm_reward": normalize.norm_reward})


def check_open(env: VecEnv) -> None:
    """Refuse an env that is closed.

    :raises ConfigurationError: with what the env says
    """
    try:
        with suppress(EnvError):  # of a worker that died, whose envs may be built anew
            env.has_attr("task_name")
    except (SoftModError, OSError, EOFError) as error:
        raise ConfigurationError(f"The env to evaluate in does not answer: {error}") from error


def check_env(model: Any, env: VecEnv) -> None:
    """Refuse an env in which a model cannot be evaluated, or would be on observations that it does not know.

    :param model: anything with ``predict``; what it does not know of itself is not checked
    :raises ConfigurationError: for other tasks, spaces or observations than those that it learned from
    """
    check_open(env)
    num_tasks_of(env)
    names, known = task_names_of(env), list(getattr(model, "task_names", None) or task_names_of(env))
    if names != known:
        raise ConfigurationError(
            f"The model knows the tasks {', '.join(known)}, in this order, but the env has {', '.join(names)}."
        )
    observations, actions = (getattr(model, name, None) for name in ("observation_space", "action_space"))
    if observations is not None and observations.shape != env.observation_space.shape:
        raise ConfigurationError(
            f"The model learned from observations {observations.shape}, but the env has {env.observation_space.shape}."
        )
    if actions is not None and actions != env.action_space:
        raise ConfigurationError(f"The model learned the actions {actions}, but the env has {env.action_space}.")
    normalize = unwrap_vec_normalize(env)
    check_normalization(env, normalize)
    if isinstance(normalize, MultiTaskVecNormalize) and statistics_of(model) is not None:
        return  # they become those of the model
    learned_so, sends = learned_normalized(model), normalize is not None and normalize.norm_obs
    if learned_so and not sends:
        raise ConfigurationError(
            "The model was trained on normalised observations, and the env sends raw ones: wrap it in "
            "MultiTaskVecNormalize(env, training=False), which then takes over the statistics of the model."
        )
    if sends and learned_so is False:
        raise ConfigurationError(
            "The model was trained on raw observations, and the env normalises them: leave out its "
            f"{type(normalize).__name__}, or pass norm_obs=False."
        )


def shares_envs(one: VecEnv, other: VecEnv) -> bool:
    """Whether two VecEnvs step the same envs, however they are wrapped."""
    if one.unwrapped is other.unwrapped:
        return True
    with suppress(SoftModError, OSError, EOFError):  # closed
        # SB3's workers die of an attribute that is not there.
        if one.has_attr("simulator") and other.has_attr("simulator"):
            return not set(one.get_attr("simulator")).isdisjoint(other.get_attr("simulator"))
    return False


@contextmanager
def playing(model: Any, env: VecEnv) -> Iterator[None]:
    """Play in an env with the statistics that a model learned with; those of the env are then as they were.

    Where these are the envs that the model learns in, its next ``learn`` begins new episodes.

    :raises ConfigurationError: see :func:`check_env`; and for the envs that it is learning in at this moment
    """
    check_env(model, env)
    learner = model.model if isinstance(model, MixedModel) else model
    own = _env_of(learner)
    if own is not None and shares_envs(env, own):
        if getattr(learner, "is_learning", False):
            raise ConfigurationError(
                "The model is learning in these envs, whose episodes would end unknown to it: evaluate in envs of "
                "their own."
            )
        learner._last_obs = None  # by which SB3 knows that it must reset
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        yield
        return
    training, normalize.training = normalize.training, False
    kept = normalize.statistics() if isinstance(normalize, MultiTaskVecNormalize) else None
    try:
        take_statistics(model, env)
        yield
    finally:
        normalize.training = training
        if kept is not None:
            normalize.set_statistics(kept)


def _env_of(model: Any) -> VecEnv | None:
    return getattr(model, "get_env", lambda: None)()


def normalize_of(model: Any) -> VecNormalize | None:
    """The normalisation of the env that a model learns in, if it has one."""
    return getattr(model, "get_vec_normalize_env", lambda: None)()
