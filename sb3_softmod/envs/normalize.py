"""Normalisation of observations and rewards that knows of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_softmod.common.checks import require_choice, require_flag, require_number
from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import replacing
from sb3_softmod.common.saved_files import naming, unpickled
from sb3_softmod.common.task_observation import num_tasks_of, split, task_ids
from sb3_softmod.envs.gymnasium_vector import GymnasiumVecEnv
from sb3_softmod.envs.normalization_statistics import (
    KINDS,
    MEANS,
    SETTINGS,
    affine,
    clip,
    normalize_observations,
    obs_mean_and_std,
    unclipped,
)
from sb3_softmod.envs.progress import progress_of, set_progress_of


class MultiTaskVecNormalize(VecNormalize):
    """SB3's ``VecNormalize`` for many tasks: the one-hot task stays as it is, and each task's rewards have their scale.

    Rewards are divided by the standard deviation of the discounted return of their own task, so that a task with
    large rewards does not outweigh the others. A model that is trained on it saves the statistics with itself.

    :param venv: a multi-task env, SB3's or a vector env of gymnasium
    :param obs_statistics: "pooled": mean and variance of the observations over all tasks; "per-task": of each task
    :param training: whether to update the statistics; this and all that follow: as in SB3
    :raises ConfigurationError: for an env without tasks, or unknown ``obs_statistics``
    """

    obs_rms: list[RunningMeanStd]  # type: ignore[assignment]  # one, or one for each task
    ret_rms: list[RunningMeanStd]  # type: ignore[assignment]  # one for each task

    def __init__(
        self,
        venv: VecEnv | VectorEnv,
        obs_statistics: Literal["pooled", "per-task"] = "pooled",
        training: bool = True,
        norm_obs: bool = True,
        norm_reward: bool = True,
        clip_obs: float = 10.0,
        clip_reward: float = 10.0,
        gamma: float = 0.99,
        epsilon: float = 1e-8,
    ) -> None:
        if isinstance(venv, VectorEnv):
            venv = GymnasiumVecEnv(venv)
        if not isinstance(venv, VecEnv):
            raise ConfigurationError(f"MultiTaskVecNormalize wraps a VecEnv, not {venv!r}.")
        self.num_tasks = num_tasks_of(venv)
        for name, limit in (("clip_obs", clip_obs), ("clip_reward", clip_reward), ("epsilon", epsilon)):
            if name == "epsilon" or not (isinstance(limit, float) and limit == np.inf):  # which clips nothing
                require_number(name, limit, above=0)
        require_number("gamma", gamma, 0, 1)
        for name, flag in (("training", training), ("norm_obs", norm_obs), ("norm_reward", norm_reward)):
            require_flag(name, flag)
        require_choice("obs_statistics", obs_statistics, KINDS)
        super().__init__(venv, training, norm_obs, norm_reward, clip_obs, clip_reward, gamma, epsilon)
        self.obs_statistics = obs_statistics
        width = venv.observation_space.shape[0] - self.num_tasks  # type: ignore[index]
        groups = self.num_tasks if obs_statistics == "per-task" else 1
        self.obs_rms = [RunningMeanStd(shape=(width,)) for _ in range(groups)]
        self.ret_rms = [RunningMeanStd(shape=()) for _ in range(self.num_tasks)]
        self._ids = np.zeros(0, int)  # of the observations that the envs sent last

    def reset(self) -> np.ndarray:
        """Reset all envs; returns the first observations, normalised."""
        observations = np.asarray(self.venv.reset())
        self.old_obs = observations
        self.returns = np.zeros(self.num_envs)
        self._ids = task_ids(observations, self.num_tasks)
        self._update_obs(observations)
        return self.normalize_obs(observations)

    def step_wait(self) -> VecEnvStepReturn:
        """Observations, rewards, dones and infos, the first two normalised."""
        observations, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray)
        acted = self._ids  # the tasks that the rewards are of; an env may have gone on to another task since
        self.old_obs, self.old_reward = observations, rewards
        self._ids = task_ids(observations, self.num_tasks)
        self._update_obs(observations)
        if self.training and np.isfinite(rewards).all():
            self.returns = self.returns * self.gamma + rewards
            for task in np.unique(acted):
                self.ret_rms[task].update(self.returns[acted == task])
        for done, info in zip(dones, infos, strict=True):
            if done and "terminal_observation" in info:
                info["raw_terminal_observation"] = info["terminal_observation"]
                info["terminal_observation"] = self.normalize_obs(info["terminal_observation"])
        self.returns[dones] = 0
        return self.normalize_obs(observations), self.normalize_reward(rewards, acted), dones, infos

    def normalize_obs(self, obs: Any) -> np.ndarray:
        """Normalise observations, not their tasks.

        :param obs: ``[..., O + M]``
        :return: the same shape, float32
        """
        return normalize_observations(vars(self), obs)

    def to_store(self, info: dict[str, Any]) -> dict[str, Any]:
        """The last info of an episode, with a terminal observation that was not clipped: SB3 stores the state that
        :meth:`unnormalize_obs` makes of it.

        :param info: of :meth:`step_wait`
        """
        raw = info.get("raw_terminal_observation")
        return info if raw is None else {**info, "terminal_observation": unclipped(vars(self), raw)}

    def unnormalize_obs(self, obs: Any) -> np.ndarray:
        """The inverse of :meth:`normalize_obs`, but for the clipping."""
        return affine(vars(self), obs, lambda x, mean, std: x * std + mean)

    def normalize_reward(self, reward: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        """Scale rewards by the returns of their tasks.

        :param reward: ``[B]`` or ``[B, 1]``
        :param ids: ``[B]``, the task of each; may be left out with ``norm_reward=False``
        :return: the same shape, float32
        :raises ConfigurationError: without the tasks
        """
        if not self.norm_reward:
            return reward.astype(np.float32)
        return clip(reward / self._scale_of(reward, ids), self.clip_reward).astype(np.float32)

    def unnormalize_reward(self, reward: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        """The inverse of :meth:`normalize_reward`, but for the clipping."""
        return reward * self._scale_of(reward, ids) if self.norm_reward else reward

    def obs_mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the observations, each ``[1, O]``, or ``[M, O]`` if of each task; float64."""
        return obs_mean_and_std(vars(self))

    def reward_scale(self) -> np.ndarray:
        """What the rewards of each task are divided by, ``[M]`` float64."""
        return np.sqrt(np.array([rms.var for rms in self.ret_rms]) + self.epsilon)

    def statistics(self) -> dict[str, Any]:
        """A copy of what :meth:`set_statistics` takes: all settings and running means, without the envs."""
        return {name: deepcopy(getattr(self, name)) for name in (*SETTINGS, *MEANS, "num_tasks")}

    def set_statistics(self, statistics: dict[str, Any]) -> None:
        """Take over the settings and running means of another one.

        :raises ConfigurationError: if they are of another number of tasks, or of observations of another size
        """
        known = self.statistics()
        if not isinstance(statistics, Mapping) or statistics.keys() != known.keys():
            raise ConfigurationError(f"The statistics of a MultiTaskVecNormalize are {', '.join(known)}.")
        if statistics["num_tasks"] != self.num_tasks:
            raise ConfigurationError(
                f"The statistics are of {statistics['num_tasks']} tasks, but the env has {self.num_tasks}."
            )
        own, given = (each["obs_rms"][0].mean.shape for each in (known, statistics))
        if own != given:
            raise ConfigurationError(
                f"The statistics are of observations of the shape {given}, but those of the env have {own}."
            )
        self.__dict__.update(deepcopy(dict(statistics)))  # a copy, since they go on here

    def __deepcopy__(self, memo: dict[int, Any]) -> MultiTaskVecNormalize:
        """With a copy of its envs, which SB3's leaves out."""
        copy = memo[id(self)] = object.__new__(type(self))
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        copy.set_venv(deepcopy(self.venv, memo))
        copy.returns = self.returns.copy()
        return copy

    @staticmethod
    def load(load_path: str, venv: VecEnv) -> VecNormalize:
        """What ``save`` wrote; arguments as in SB3. Loading runs code from the file: open only files you trust.

        :raises FileError: naming the file, if it is missing or broken
        :raises ConfigurationError: naming the file, if it is of other tasks or observations than the env
        """
        found = unpickled(load_path, "VecNormalize", "pkl")
        if not isinstance(found, VecNormalize):
            raise FileError(f"{load_path} holds no VecNormalize but {type(found).__name__}.")
        if isinstance(found, MultiTaskVecNormalize) and found.num_tasks != num_tasks_of(venv):
            raise ConfigurationError(
                f"{load_path} is of {found.num_tasks} tasks, but the env has {num_tasks_of(venv)}."
            )
        shape, own = (getattr(each, "observation_space", venv.observation_space).shape for each in (found, venv))
        if shape != own:
            raise ConfigurationError(f"{load_path} is of observations of shape {shape}, those of the env have {own}.")
        with naming(load_path, "VecNormalize"):
            found.set_venv(venv)
        return found

    def save(self, save_path: str) -> None:
        """Save settings and statistics; arguments as in SB3.

        :raises FileError: if the file cannot be written
        """
        with replacing(save_path) as draft:
            super().save(str(draft))

    def progress(self) -> dict[str, Any]:
        """How far the envs are, for :meth:`set_progress`, statistics and running returns included.

        :raises ConfigurationError: if a wrapper between this one and the envs cannot tell
        """
        return {
            "envs": progress_of(self.venv),
            "statistics": self.statistics(),
            "returns": self.returns.copy(),
            "old_reward": deepcopy(self.old_reward),
        }

    def set_progress(self, progress: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`.MultiTaskVecEnv.set_progress`; the observations are normalised.

        :raises ConfigurationError: as there, or for a progress of envs without normalisation
        """
        if "statistics" not in progress or "envs" not in progress:
            raise ConfigurationError("The progress is of envs without MultiTaskVecNormalize, but these have it.")
        observations, strayed = set_progress_of(self.venv, progress["envs"])
        self.set_statistics(progress["statistics"])
        self.returns = np.where(strayed, 0.0, progress["returns"])
        self.old_obs, self.old_reward = observations, deepcopy(progress["old_reward"])
        self._ids = task_ids(observations, self.num_tasks)
        return self.normalize_obs(observations), strayed

    def _update_obs(self, observations: np.ndarray) -> None:
        if not (self.training and self.norm_obs):
            return
        states = split(observations, self.num_tasks)[0]
        finite = np.isfinite(states).all(1)  # the algorithm refuses the others; they must not spoil the statistics
        groups = self._ids if self.obs_statistics == "per-task" else np.zeros(len(states), int)
        states, groups = states[finite], groups[finite]
        states = states[groups.argsort(kind="stable")]
        found, counts = np.unique(groups, return_counts=True)
        for count in set(counts.tolist()):  # groups of as many rows at once: the same numbers in a third of the calls
            same = states[counts.repeat(counts) == count].reshape(-1, count, states.shape[1])
            for group, mean, var in zip(found[counts == count], same.mean(1), same.var(1), strict=True):
                self.obs_rms[group].update_from_moments(mean, var, count)

    def _scale_of(self, reward: np.ndarray, ids: np.ndarray | None) -> np.ndarray:
        if ids is None:
            raise ConfigurationError(
                "MultiTaskVecNormalize scales rewards by their tasks, and was not told which these are of: SB3's own "
                "algorithms sample batches without. Pass norm_reward=False to it, learn with MultiTaskSAC, or give "
                "normalize_reward the task of each reward, ids."
            )
        return self.reward_scale()[ids].reshape(reward.shape)


def check_normalization(env: VecEnv | None, normalize: VecNormalize | None) -> None:
    """Refuse SB3's normalisation of observations that end in a one-hot task, and wrappers that change what it sends.

    :param env: what a model learns in
    :param normalize: the normalisation in it
    :raises ConfigurationError: saying what to take instead
    """
    # Replay buffers keep observations as they are inside of the normalisation.
    if env is not None and normalize is not None and env.observation_space.shape != normalize.observation_space.shape:
        raise ConfigurationError(
            f"{type(env).__name__} around {type(normalize).__name__} changes the shape of observations: put the "
            f"normalisation around it, {type(normalize).__name__}({type(env).__name__}(...))."
        )
    if type(normalize) is VecNormalize and normalize.norm_obs:
        raise ConfigurationError(
            "VecNormalize normalises the one-hot task too, which then names no task: use MultiTaskVecNormalize, or "
            "pass norm_obs=False."
        )
