"""How well a model does on each task."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Literal

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_softmod.common.checks import require_choice, require_flag, require_integer, require_names
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import num_tasks_of, task_ids, task_names_of, tasks_in_turn, turns_of
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.envs.gymnasium_vector import GymnasiumVecEnv
from sb3_softmod.envs.make import make_task_set_env
from sb3_softmod.envs.metaworld import MAX_HORIZON, NUM_GOALS, Goals, resolve_task_names
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.some_tasks import SomeTasks
from sb3_softmod.envs.task_sets import NAMESPACE, TASK_SETS, TaskSet, get_task_set
from sb3_softmod.evaluation.evaluated_env import learned_normalized, normalize_of, playing, statistics_of
from sb3_softmod.evaluation.result import TaskEvaluation

#: How others evaluate: Meta-World's protocol, whose envs time out after 500 steps (metaworld.evaluation and
#: SawyerXYZEnv.max_path_length), and section 5.2 of the paper, with the goals and the horizon of its training.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "metaworld": dict(goals="each-once", n_eval_episodes=50, terminate_on_success=True, horizon=MAX_HORIZON),
    "paper": dict(n_eval_episodes=100, terminate_on_success=False),
}
Protocol = Literal["metaworld", "paper"]

#: How many episodes of other tasks, for each of its tasks, an env may play without coming to one whose episodes are
#: still to be played; tasks may come by chance, and seldom.
_ROUNDS = 200

#: Steps after which an episode counts as one that never ends.
_ENDLESS = 100_000

#: About how many envs an evaluation by name plays at once.
_ENVS = 30


def evaluate_tasks(
    model: Any,
    env: VecEnv | VectorEnv | str | Sequence[str],
    *,
    protocol: Protocol | None = None,
    n_eval_episodes: int | None = None,
    goals: Goals | None = None,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    deterministic: bool = True,
    n_workers: int | None = None,
    progress_bar: bool = False,
) -> TaskEvaluation:
    """Play the same number of episodes of every task, all envs at once.

    Short episodes do not count more often than long ones: each env of a task plays a fixed share of its episodes, and
    where the envs go from task to task, the episodes that began first count. Meanwhile a ``MultiTaskVecNormalize`` of
    the env does what that of the model does, and learns nothing.

    ``evaluate_tasks(model, "MT10", protocol="metaworld", seed=1)`` plays Meta-World's protocol: each of a task's 50
    goals once, up to the first success, for at most 500 steps, however long the episodes of the training were.
    ``protocol="paper"`` plays the paper's, 100 episodes of 200 steps with the goals of the set: of "MT10-Fixed" one a
    task, else random ones.

    :param model: anything with ``predict``
    :param env: a multi-task env, which is reset (the next ``learn`` of a model that learns in it begins new episodes);
        or the name of a task set, of a Meta-World task, or a list of these: envs are made for it, with the observation
        statistics of the model, and closed; they may be some of the model's tasks
    :param protocol: sets number of episodes and goals, whether an episode ends with its first success, and the horizon
    :param n_eval_episodes: episodes of each task; default that of the protocol, or 50
    :param goals: of the envs that are made, see :func:`.make_metaworld_env`; default that of the protocol or of the set
    :param seed: of the envs that are made: of the goals and their order; default that of the model, so that envs which
        it made by name have the same goals; a model without one draws it
    :param env_kwargs: further arguments of the envs that are made: "horizon", "reward_version",
        "terminate_on_success", ...
    :param deterministic: act by the mean instead of a sample
    :param n_workers: of the envs that are made; the result is the same for every number
    :param progress_bar: show one
    :raises ConfigurationError: for fewer than one episode, an unknown protocol, tasks, spaces or normalisation that are
        not the model's, options of envs beside an env, or the envs in which the model is learning at this moment
    """
    if not hasattr(model, "predict"):
        raise ConfigurationError(f"A model has a method predict, which {model!r} has not.")
    if protocol is not None:
        require_choice("protocol", protocol, PROTOCOLS)
    of_protocol = {"n_eval_episodes": 50, **PROTOCOLS.get(protocol or "", {})}
    usual = of_protocol.pop("n_eval_episodes")
    episodes = usual if n_eval_episodes is None else n_eval_episodes
    require_integer("n_eval_episodes", episodes, 1)
    require_flag("deterministic", deterministic)
    if env_kwargs is not None:
        require_names("env_kwargs", env_kwargs)
    settings: dict[str, Any] = dict(n_eval_episodes=episodes, deterministic=deterministic)
    if isinstance(env, VectorEnv):
        env = GymnasiumVecEnv(env)
    if isinstance(env, VecEnv):
        of_made = dict(protocol=protocol, goals=goals, seed=seed, env_kwargs=env_kwargs, n_workers=n_workers)
        for name, value in of_made.items():
            if value is not None:
                raise ConfigurationError(
                    f"{name} is for envs that are made by name: make the env that you pass with it."
                )
        return _evaluate(model, env, settings, progress_bar)
    given = dict(env_kwargs or {})
    if "seed" in given and seed is not None:
        raise ConfigurationError(f"The seed is there twice: seed={seed}, and {given['seed']!r} in env_kwargs.")
    if "goals" in given and goals is not None:
        raise ConfigurationError(f"The goals are there twice: goals={goals!r}, and {given['goals']!r} in env_kwargs.")
    seed = given.pop("seed", getattr(model, "seed", None)) if seed is None else seed
    options = {
        **as_task_set(env).options,
        **of_protocol,
        **({} if goals is None else {"goals": goals}),
        **given,
    }
    with closing(
        make_evaluation_env(model, env, most_copies=episodes, options={**options, "seed": seed}, n_workers=n_workers)
    ) as made:
        settings |= dict(env=env if isinstance(env, str) else list(env), protocol=protocol, seed=seed, **options)
        return _evaluate(model, made, settings, progress_bar)


def make_evaluation_env(
    model: Any,
    tasks: str | Sequence[str],
    *,
    most_copies: int = 1,
    options: Mapping[str, Any] | None = None,
    n_workers: int | None = None,
) -> VecEnv:
    """Envs for a model, with its observation statistics, which stay as they are.

    :param model: that knows its tasks, if it does
    :param tasks: as ``env`` of :func:`evaluate_tasks`
    :param most_copies: of each task; fewer where there are many tasks
    :param options: arguments of the envs, see :meth:`.TaskSet.arguments`
    :param n_workers: see :func:`.make_metaworld_env`
    :raises ConfigurationError: for tasks that are not the model's, or options that there are not
    """
    task_set = as_task_set(tasks)
    names = task_names(task_set)
    known = getattr(model, "task_names", None)
    of_some = bool(known) and len(names) < len(known) and set(names) < set(known)  # type: ignore[arg-type]
    if known and list(names) != list(known) and not of_some:
        raise ConfigurationError(f"The model knows the tasks {', '.join(known)}, in this order, not {tasks}.")
    copies = max(1, min(most_copies, _ENVS // len(names)))
    if most_copies > NUM_GOALS and (options or {}).get("goals") == "each-once":  # as many rounds of each goal
        copies = max(number for number in range(1, copies + 1) if NUM_GOALS % number == 0)
    env: VecEnv = make_task_set_env(task_set, copies * len(names), options=options or {}, n_workers=n_workers)
    if of_some:
        env = SomeTasks(env, known)  # type: ignore[arg-type]
    statistics = statistics_of(model)
    if statistics is not None:
        env = MultiTaskVecNormalize(env, training=False)
        env.set_statistics({**statistics, "norm_reward": False})
    return env


def as_task_set(tasks: str | Sequence[str]) -> TaskSet:
    """What a user means by the tasks of envs that are made: a set by its name in experiments, or Meta-World's own names
    for sets and tasks.

    :raises ConfigurationError: for an unknown name, with the nearest
    """
    if isinstance(tasks, str) and (tasks in TASK_SETS or tasks.startswith(NAMESPACE) or "+" in tasks):
        return get_task_set(tasks)
    return TaskSet(str(tasks), "metaworld", resolve_task_names(tasks), 3, dict(goals="random"))


def _evaluate(model: Any, env: VecEnv, settings: dict[str, Any], progress_bar: bool) -> TaskEvaluation:
    with playing(model, env), tqdm(total=None, unit="episode", disable=not progress_bar) as progress:
        statistics = _play(model, env, settings["n_eval_episodes"], settings["deterministic"], progress)
    means = statistics.means()
    if "return" not in means:
        raise ConfigurationError(
            "No episode was reported: the last info of each must hold 'episode' and 'task_id', as those of "
            "sb3_softmod.TaskEnv do (SB3's Monitor and VecMonitor add the former)."
        )
    missing = np.full_like(means["return"], np.nan)
    return TaskEvaluation(
        task_names=task_names_of(env),
        episodes=statistics.num_episodes(),
        success_rate=means.get("success_rate", missing).tolist(),
        success_at_end_rate=means.get("success_at_end_rate", missing).tolist(),
        mean_return=means["return"].tolist(),
        length=means["length"].tolist(),
        settings=settings,
    )


def _play(model: Any, env: VecEnv, n_eval_episodes: int, deterministic: bool, progress: tqdm) -> EpisodeStatistics:
    """Play the episodes that count."""
    num_tasks = num_tasks_of(env)
    statistics = EpisodeStatistics(num_tasks, window=n_eval_episodes)
    observations = np.asarray(env.reset())
    tasks = task_ids(observations, num_tasks)
    rotates = any(len(turns) > 1 for turns in turns_of(env))
    # How many episodes that count may still begin: by task where the envs rotate, otherwise by env.
    of_tasks = n_eval_episodes * tasks_in_turn(env, num_tasks)
    patience = _ROUNDS * np.array([len(turns) for turns in turns_of(env)])
    waited = np.zeros(env.num_envs, int)  # episodes in turn that do not count
    to_begin = of_tasks if rotates else _shares(tasks, n_eval_episodes)
    progress.reset(int(to_begin.sum()))
    counts = np.zeros(env.num_envs, bool)  # whether the episode that an env plays now counts
    begins = np.ones(env.num_envs, bool)
    lengths = np.zeros(env.num_envs, int)
    while True:
        for index in np.flatnonzero(begins):
            key = tasks[index] if rotates else index
            counts[index] = to_begin[key] > 0
            to_begin[key] -= counts[index]
            waited[index] += 1
        if (begins & counts).any():
            waited[:] = 0
        if not counts.any() and not to_begin.any():
            return statistics
        if (waited > patience).all():
            awaited = [repr(name) for name, missing in zip(task_names_of(env), to_begin, strict=True) if missing]
            raise ConfigurationError(
                f"The envs list task {', '.join(awaited)} in tasks_in_turn, but began {waited.sum()} episodes on end "
                "of other tasks: list the tasks that an env comes to, and no others."
            )
        lengths = np.where(begins, 1, lengths + 1)
        if (lengths > _ENDLESS).any():
            endless = task_names_of(env)[tasks[lengths.argmax()]]
            raise ConfigurationError(
                f"An episode of task {endless!r} had {_ENDLESS:,} steps and no end: give its env a time limit "
                "(gymnasium.wrappers.TimeLimit, or max_episode_steps of the function that makes the envs)."
            )
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, begins, infos = env.step(actions)  # type: ignore[assignment]
        tasks = task_ids(observations, num_tasks)
        ended = begins & counts
        statistics.add(info for info, counted in zip(infos, ended, strict=True) if counted)
        progress.update(int(ended.sum()))


def _shares(tasks: np.ndarray, episodes: int) -> np.ndarray:
    """Deal out the episodes of each task to its envs; both the tasks of the envs and the result are ``[n_envs]``."""
    shares = np.empty(len(tasks), int)
    for task in np.unique(tasks):
        copies = np.flatnonzero(tasks == task)
        shares[copies] = [episodes // len(copies) + (i < episodes % len(copies)) for i in range(len(copies))]
    return shares


def act(model: Any, env: VecEnv) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """Act by the deterministic policy, without end; the env takes its step when the next item is asked for.

    :param env: it is reset
    :return: for each step the observations ``[n_envs, O + M]``, the actions ``[n_envs, action_dim]`` that answer them,
        and ``[n_envs]`` whether an episode begins with them
    :raises ConfigurationError: for an env that does not fit, see :func:`evaluate_tasks`
    """
    with playing(model, env):
        observations, begins = np.asarray(env.reset()), np.ones(env.num_envs, bool)
        while True:
            actions = model.predict(observations, deterministic=True)[0]
            yield observations, actions, begins
            observations, _, begins, _ = env.step(actions)  # type: ignore[assignment]


def rollout(model: Any, env: VecEnv, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What the deterministic policy meets and does.

    :param env: it is reset
    :param steps: of each env
    :return: observations ``[steps, n_envs, O + M]`` and actions ``[steps, n_envs, action_dim]``
    :raises ConfigurationError: for fewer than one step, or as :func:`act`
    """
    require_integer("steps", steps, 1)
    with closing(act(model, env)) as playing:
        observations, actions, _ = zip(*islice(playing, steps), strict=True)
    return np.stack(observations), np.stack(actions)


class MetaWorldAgent:
    """A model as Meta-World's own evaluator takes it: ``metaworld.evaluation.evaluation(MetaWorldAgent(model), envs)``.

    The envs have to append the one-hot task (``metaworld.make_mt_envs(..., use_one_hot=True)``).

    :param model: anything with ``predict``; with its observation statistics, if it was trained on normalised ones
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """The deterministic actions, ``[n_envs, action_dim]``, for ``[n_envs, O + M]``."""
        observations = observations.astype(np.float32)
        normalize = normalize_of(self.model)
        if normalize is not None:
            observations = normalize.normalize_obs(observations)  # type: ignore[assignment]
        elif learned_normalized(self.model):
            raise ConfigurationError(
                "The model was trained on normalised observations: load it with an env, load(path, env=...)."
            )
        return self.model.predict(observations, deterministic=True)[0]

    def reset(self, env_mask: np.ndarray) -> None:
        """Nothing is remembered from step to step."""
