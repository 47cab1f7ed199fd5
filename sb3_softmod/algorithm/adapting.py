"""New tasks for a trained model: what it begins from, and what grows by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_softmod.algorithm.nearest_tasks import nearest_tasks
from sb3_softmod.algorithm.weighting_options import check_loss_weighting
from sb3_softmod.common.checks import arguments_of, require_choice, require_flag
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import num_tasks_of, task_names_of
from sb3_softmod.envs.make import as_env, make_metaworld_env
from sb3_softmod.envs.metaworld import resolve_task_names
from sb3_softmod.envs.some_tasks import SomeTasks
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.networks.adapted import begin_from
from sb3_softmod.networks.tunable import Tune, require_tune
from sb3_softmod.policies import MultiTaskSACPolicy
from sb3_softmod.saving.loading import ADDED, ATTRIBUTES, check_arguments, check_critic, with_own_options

if TYPE_CHECKING:
    from sb3_softmod.algorithm.learning_sac import LearningSAC

Init = Literal["nearest", "mean", "fresh"]
INITS: tuple[Init, ...] = get_args(Init)

#: Arguments that an adapted model has of its own.
_OF_ITS_OWN = ("self", "policy", "env", "device", "num_tasks", "_init_setup_model")


def adapt(model: Any, tasks: Any, tune: Tune, keep_tasks: bool, init: Init, kwargs: Mapping[str, Any]) -> Any:
    """See :meth:`.MultiTaskSAC.adapt`."""
    policy = model.policy
    if not isinstance(policy, MultiTaskSACPolicy):
        raise ConfigurationError(
            f"adapt needs a policy of this package, not {type(policy).__name__}; MTMlpPolicy is the plain perceptron."
        )
    require_tune(tune, policy.network_class, type(policy).__name__)
    require_flag("keep_tasks", keep_tasks)
    require_choice("init", init, INITS)
    check_arguments(type(model), "adapt", kwargs)
    for name in ("policy_kwargs", "num_tasks"):
        if name in kwargs:
            raise ConfigurationError(
                f"adapt takes no {name}: the networks are those of the model, and of the new tasks."
            )
    check_critic(vars(model), kwargs)
    env, made = _env_of(model, tasks, keep_tasks)
    try:
        return _adapted(model, env, tune, keep_tasks, init, kwargs)
    except BaseException:
        if made:
            env.close()
        raise


def _env_of(model: Any, tasks: Any, keep_tasks: bool) -> tuple[VecEnv, bool]:
    """The envs of the new tasks, checked; and whether they were made here."""
    if isinstance(tasks, (list, tuple)) and not tasks:
        raise ConfigurationError("adapt needs at least one task, and the list is empty.")
    named = isinstance(tasks, str) or (isinstance(tasks, (list, tuple)) and all(isinstance(t, str) for t in tasks))
    if named:
        names = list(resolve_task_names(tasks))
    else:
        env = as_env(tasks, model.seed)
        if not isinstance(env, VecEnv):
            raise ConfigurationError(
                f"tasks must be names of Meta-World tasks, or a vectorised env of the new tasks, not {tasks!r}."
            )
        num_tasks_of(env)
        names = task_names_of(env)
        if keep_tasks and names[: model.num_tasks] == model.task_names and len(names) > model.num_tasks:
            _check_spaces(model, env, len(names))
            return env, False
    known = [name for name in names if name in model.task_names]
    if keep_tasks and known:
        raise ConfigurationError(
            f"The model knows the task {known[0]!r} already: adapt takes new tasks (keep_tasks=False leaves the old "
            "ones behind)."
        )
    if named:
        env = make_metaworld_env(names, seed=model.seed)
    try:
        _check_spaces(model, env, len(names))
    except ConfigurationError:
        if named:
            env.close()
        raise
    return env, named


def _check_spaces(model: Any, env: VecEnv, num_tasks: int) -> None:
    """Refuse new tasks that the networks cannot read, or whose actions are others."""
    own = model.observation_space.shape[0] - model.num_tasks
    found = env.observation_space.shape[0] - num_tasks  # type: ignore[index]
    if own != found:
        raise ConfigurationError(
            f"The model's observations have {own} entries besides the task, those of the new tasks {found}: one policy "
            "needs the same for all tasks."
        )
    if model.action_space != env.action_space:
        raise ConfigurationError(
            f"The model's actions are {model.action_space}, those of the new tasks {env.action_space}."
        )


def _adapted(model: Any, env: VecEnv, tune: Tune, keep_tasks: bool, init: Init, kwargs: Mapping[str, Any]) -> Any:
    old, played = list(model.task_names), task_names_of(env)
    new = [name for name in played if not keep_tasks or name not in old]
    kept = old if keep_tasks else []
    names = [*kept, *new]
    first = model.policy.groups[0]["tasks"] if model.policy.groups else model.num_tasks
    rows: Sequence[int] | str = init
    if init == "nearest":
        rows = nearest_tasks(model, env, new, first)

    before = model.policy.groups or [{"tasks": model.num_tasks, "tune": None}]
    learning = len(names) if tune == "all" else len(new)
    per_task = max(model.batch_size // len(model.learning_tasks), 1)
    cls = type(model)
    arguments = {
        name: getattr(model, ATTRIBUTES.get(name, name)) for name in arguments_of(cls) if name not in _OF_ITS_OWN
    }
    arguments |= dict(
        policy_kwargs={
            **{name: value for name, value in model.policy_kwargs.items() if name not in ADDED},
            "groups": [*(before if keep_tasks else []), {"tasks": len(new), "tune": tune}],
        },
        buffer_size=model.buffer_size // model.num_tasks * len(names),
        batch_size=-(-per_task * learning // len(names)) * len(names),  # that the number of tasks divides
        learning_starts=model.learning_starts * len(new) // before[-1]["tasks"],  # which the model's are for
        ent_coef=_ent_coef(model, len(kept), len(new), rows, first),
        action_noise=deepcopy(model.action_noise),  # which remembers its last value
    )
    arguments |= with_own_options(vars(model), kwargs)
    # None of the old tasks is played: each has its ring, and stays empty where it cannot learn.
    in_all = SomeTasks(env, names) if played == new and kept else env
    adapted = cls(model.policy_class, in_all, device=model.device, _init_setup_model=False, **arguments)
    statistics = model.observation_statistics()
    if statistics is None:
        model._check_observations(unwrap_vec_normalize(env))
    else:
        adapted.normalization = _grown_statistics(statistics, len(kept), len(new), rows, first, tune)
    adapted._setup_model()
    check_loss_weighting(vars(adapted))  # now that there is a policy
    adapted._acceleration()
    for part in ("actor", "critic"):
        begin_from(getattr(adapted, part).network, getattr(model, part).network, tune, rows)
    adapted.critic_target.load_state_dict(adapted.critic.state_dict())
    if "ent_coef" not in kwargs:
        _grow_temperatures(adapted, model, len(kept), len(new), rows, first)
    scale, old_scale = adapted.reward_scale, model.reward_scale
    if kept and scale is not None and old_scale is not None and scale.gamma == old_scale.gamma:
        scale.set_largest_returns([*old_scale.largest_returns(), *[0.0] * len(new)])
    if tune == "all" and kept:
        _take_transitions(adapted, model, len(new))
    begun = {name: old[row] for name, row in zip(new, rows, strict=True)} if init == "nearest" else init  # type: ignore[call-overload]
    adapted.adapted_from = {
        "tasks": old,
        "env_steps": model.num_timesteps,
        "new_tasks": new,
        "tune": tune,
        "keep_tasks": keep_tasks,
        "init": begun,
    }
    return adapted


def _ent_coef(model: Any, num_kept: int, num_new: int, rows: Sequence[int] | str, first: int) -> Any:
    """The temperatures of all tasks, as an argument: where they are fixed and listed, the list grows."""
    given = model.ent_coef
    if isinstance(given, str) or np.ndim(given) == 0:
        return given
    own = [float(value) for value in given]
    added = [float(np.mean(own[:first]))] * num_new if isinstance(rows, str) else [own[row] for row in rows]
    return [*own[:num_kept], *added]


def _grow_temperatures(
    adapted: Any, model: Any, num_kept: int, num_new: int, rows: Sequence[int] | str, first: int
) -> None:
    """Learned temperatures: those of the old tasks as they are, and of the new as what they begin as."""
    if adapted.log_ent_coef is None or model.log_ent_coef is None:
        return
    with th.no_grad():
        old, own = model.log_ent_coef.detach(), adapted.log_ent_coef
        own[:num_kept] = old[:num_kept]
        if rows == "mean":
            own[num_kept:] = old[:first].mean()
        elif rows != "fresh":
            own[num_kept:] = old[th.as_tensor(rows, device=old.device)]


def _grown_statistics(
    statistics: dict[str, Any], num_kept: int, num_new: int, rows: Sequence[int] | str, first: int, tune: str
) -> dict[str, Any]:
    """Statistics for the new tasks too.

    Where the old tasks are kept and do not learn, pooled statistics become those of each task: what the new tasks send
    must not change what the old ones' networks see.
    """
    grown, means = deepcopy(statistics), statistics["obs_rms"]
    grown["num_tasks"] = num_kept + num_new
    returns = statistics["ret_rms"][:num_kept]
    grown["ret_rms"] = deepcopy([*returns, *(RunningMeanStd(shape=()) for _ in range(num_new))])
    pooled = statistics["obs_statistics"] == "pooled"
    if pooled and (not num_kept or tune == "all"):
        return grown
    by_task = means * statistics["num_tasks"] if pooled else means
    added = (
        [_merged(by_task[:first] if not pooled else means)] * num_new
        if isinstance(rows, str)
        else [by_task[r] for r in rows]
    )
    grown |= {"obs_statistics": "per-task", "obs_rms": [deepcopy(each) for each in [*by_task[:num_kept], *added]]}
    return grown


def _merged(means: Sequence[RunningMeanStd]) -> RunningMeanStd:
    """Mean and variance over all that several have seen."""
    merged = deepcopy(means[0])
    for each in means[1:]:
        merged.combine(each)
    return merged


def _take_transitions(adapted: Any, model: LearningSAC, num_new: int) -> None:
    """Let the replay buffer hold what that of the old tasks does; each task's ring is as large."""
    own, old = adapted.replay_buffer, model.replay_buffer
    if not isinstance(own, MultiTaskReplayBuffer) or not isinstance(old, MultiTaskReplayBuffer) or not old.size():
        return
    if own.capacity_per_task != old.capacity_per_task:
        raise ConfigurationError(
            "tune='all' keeps what the model's replay buffer holds, which has room for "
            f"{old.capacity_per_task} transitions of each task, not for {own.capacity_per_task} as with "
            f"buffer_size={adapted.buffer_size}: leave buffer_size out, or empty the buffer before, "
            "model.replay_buffer.reset()."
        )
    segment, head = old.segment(), old.head()
    assert segment is not None
    none = np.zeros(num_new, np.int64)
    for name in ("first", "added_per_task"):
        segment[name] = np.concatenate([segment[name], none])
    head["shape"] = head["shape"] + np.array([num_new, 0, 0])
    own.restore([segment], head)
