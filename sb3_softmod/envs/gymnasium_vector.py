"""Gymnasium's vector envs as SB3's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import make_space, split
from sb3_softmod.envs import worker
from sb3_softmod.envs.arguments import as_actions
from sb3_softmod.envs.tasks import success_of

_FACTS = ("num_tasks", "task_names", "task_id")


class GymnasiumVecEnv(VecEnv):
    """A vector env of gymnasium whose envs are tasks, as SB3's ``VecEnv``.

    Takes ``gym.make_vec("SoftMod/MT10-Conditioned-v3")``, Meta-World's ``gym.make_vec("Meta-World/MT10")``, with
    ``use_one_hot`` or without, and vector envs of :class:`.TaskEnv`. An env begins its next episode in the step that
    ends the last one, as SB3 expects. Infos hold what :class:`.TaskEnv` puts into them.

    :param envs: with ``AutoresetMode.SAME_STEP``, or a ``SyncVectorEnv`` of any mode without wrappers around it
    :raises ConfigurationError: for another mode, or envs that are no tasks
    """

    def __init__(self, envs: VectorEnv) -> None:
        if not isinstance(envs, VectorEnv):
            raise ConfigurationError(f"GymnasiumVecEnv takes a vector env of gymnasium, not {envs!r}.")
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._same_step = mode == AutoresetMode.SAME_STEP
        # Those of other modes are reset here. Gymnasium's wrappers would then begin the statistics of all envs anew,
        # and AsyncVectorEnv may reset an env twice.
        if not self._same_step and not isinstance(envs, SyncVectorEnv):
            raise ConfigurationError(
                f"{envs} does not begin an episode in the step that ends the last one (its mode is {mode}), as SB3 "
                "expects: make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP."
            )
        space, action_space = envs.single_observation_space, envs.single_action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigurationError(f"The observations of {envs} must be 1-D Boxes, not {space}: flatten them first.")
        self.envs = envs
        self._inner: Any = envs.unwrapped  # gymnasium's wrappers pass on no attributes
        #: The names of all tasks, by task id.
        self.task_names, self._tasks, shown = _tasks_of(envs)
        #: M
        self.num_tasks = len(self.task_names)
        #: What observations lack, ``[n_envs, M]`` or ``[n_envs, 0]``.
        self._one_hot = np.eye(self.num_tasks)[self._tasks][:, : 0 if shown else None]
        self._made_at = time.perf_counter()
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, int)
        self._succeeded, self._reported = np.zeros((2, envs.num_envs), bool)
        width = space.shape[0] + self._one_hot.shape[1] - self.num_tasks
        super().__init__(envs.num_envs, make_space(width, self.num_tasks), action_space)

    # ---------------------------------------------------------------- stepping

    def reset(self) -> np.ndarray:
        """Begin an episode in every env, with the seeds and options set before.

        :return: observations ``[n_envs, O + M]``
        :raises ConfigurationError: for options that differ from env to env, which gymnasium does not pass on
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ConfigurationError(f"{self.envs} takes the same options for all envs, not {self._options}.")
        seeds: Any = None if set(self._seeds) == {None} else self._seeds
        observations, infos = self.envs.reset(seed=seeds, options=dict(options) or None)
        self.reset_infos = [_row(infos, index) for index in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._begin(np.ones(self.num_envs, bool))
        return self._canonical(observations)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds for the next reset: of each env its own, from this one on; after the largest of 32 bits comes 0."""
        super().seed(seed)
        self._seeds = [None if each is None else each % 2**32 for each in self._seeds]
        return self._seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions, ``[n_envs, *action shape]``.

        :raises ConfigurationError: for another shape, or numbers that are no actions
        :raises NonFiniteError: for NaN or infinity
        """
        dtype = np.dtype(self.action_space.dtype)
        shape = (self.num_envs, *self.action_space.shape)  # type: ignore[misc]
        self._actions = as_actions(actions, shape, dtype, self._name).astype(dtype)

    def step_wait(self) -> VecEnvStepReturn:
        """Take a step.

        :return: observations ``[n_envs, O + M]``, rewards ``[n_envs]`` float32, dones ``[n_envs]`` and infos
        """
        observations, rewards, terminations, truncations, vector_infos = self.envs.step(self._actions)
        dones = terminations | truncations
        infos = [_row(vector_infos, index) for index in range(self.num_envs)]
        ends: dict[int, np.ndarray] = {}
        for index in np.flatnonzero(dones).tolist():
            if self._same_step:
                ends[index] = infos[index].pop("final_obs")
                last_info = infos[index].pop("final_info")
                self.reset_infos[index], infos[index] = infos[index], last_info
            else:
                ends[index] = observations[index].copy()
        if ends and not self._same_step:
            fresh, reset_infos = self.envs.reset(options={"reset_mask": dones})
            observations = np.where(dones[:, None], fresh, observations)
            for index in ends:
                self.reset_infos[index] = _row(reset_infos, index)
        self._returns += rewards
        self._lengths += 1
        for index, info in enumerate(infos):
            self._describe(index, info)
            info["TimeLimit.truncated"] = bool(truncations[index] and not terminations[index])
            if index in ends:
                end = np.concatenate([ends[index], self._one_hot[index]], dtype=np.float32)
                info["terminal_observation"] = end
                self._report(index, info)
        self._begin(dones)
        return self._canonical(observations), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close all envs."""
        self.envs.close()

    def _canonical(self, observations: np.ndarray) -> np.ndarray:
        """Observations with their tasks, which the envs play from now on."""
        out = np.concatenate([observations, self._one_hot], 1, dtype=np.float32)
        self._tasks = split(out, self.num_tasks)[1].argmax(1).tolist()
        return out

    def _begin(self, envs: np.ndarray) -> None:
        """Begin the statistics of an episode in some envs, ``[n_envs]``."""
        self._returns[envs] = self._lengths[envs] = 0
        self._succeeded[envs] = self._reported[envs] = False

    def _describe(self, index: int, info: dict[str, Any]) -> None:
        info["task_id"], info["task_name"] = self._tasks[index], self._name(index)
        info.pop("episode", None)  # of a wrapper, at the end of an episode or all the time
        success = success_of(info, self._name(index))
        info.pop("is_success", None)  # here the word is for whole episodes
        if success is not None:
            info["success"] = success
            self._succeeded[index] |= success
            self._reported[index] = True

    def _report(self, index: int, info: dict[str, Any]) -> None:
        """What is said of an episode at its end."""
        elapsed = round(time.perf_counter() - self._made_at, 6)
        info["episode"] = {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": elapsed}
        if self._reported[index]:  # at some step: an env may speak of success alone
            info["is_success"], info["is_success_at_end"] = bool(self._succeeded[index]), info.get("success", False)

    def _name(self, index: int) -> str:
        return self.task_names[self._tasks[index]]

    # ----------------------------------------------------------- talk to the envs

    def has_attr(self, attr_name: str) -> bool:
        """Whether all envs have an attribute."""
        return attr_name in _FACTS or _have(self.envs, attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of some envs."""
        own: dict[str, list[Any]] = {
            "num_tasks": [self.num_tasks] * self.num_envs,
            "task_names": [tuple(self.task_names)] * self.num_envs,
            "task_id": self._tasks,
            "render_mode": [self.envs.render_mode] * self.num_envs,
            "observation_space": [self.observation_space] * self.num_envs,
        }
        if attr_name not in own and not _have(self.envs, attr_name):
            raise AttributeError(f"Not all of the envs of {self.envs} have an attribute {attr_name!r}.")
        values = own[attr_name] if attr_name in own else self._inner.get_attr(attr_name)
        return [values[index] for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all envs, or of those that have it already of some."""
        chosen = list(self._get_indices(indices))
        values = [value] * self.num_envs if len(chosen) == self.num_envs else self.get_attr(attr_name)
        for index in chosen:
            values[index] = value
        self._inner.set_attr(attr_name, values)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of all envs, or ``render`` of some.

        :raises ConfigurationError: for another method of some of them, which gymnasium cannot
        """
        chosen = list(self._get_indices(indices))
        if len(chosen) < self.num_envs and method_name != "render":  # which leaves the others as they are
            raise ConfigurationError(f"{self.envs} calls {method_name} of all envs, not of some: leave out indices.")
        if not _have(self.envs, method_name):
            raise AttributeError(f"Not all of the envs of {self.envs} have an attribute {method_name!r}.")
        values = self._inner.call(method_name, *method_args, **method_kwargs)
        return [values[index] for index in chosen]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether some envs are wrapped with a class; False for those in other processes."""
        envs = getattr(self._inner, "envs", [])
        name = wrapper_class.__module__, wrapper_class.__qualname__
        return [bool(envs) and worker.is_wrapped(envs[index], *name) for index in self._get_indices(indices)]

    def get_images(self) -> list[Any]:
        """A picture of each env; needs ``render_mode="rgb_array"``."""
        return list(self.envs.render() or [None] * self.num_envs)


def _row(infos: dict[str, Any], index: int) -> dict[str, Any]:
    """The info of one env: beside what is under a key of a vector's infos, ``_key`` says which envs it is of."""
    row = {}
    for key, values in infos.items():
        is_mask = key.startswith("_") and key[1:] in infos
        if not is_mask and infos.get(f"_{key}", [True] * (index + 1))[index]:
            row[key] = _row(values, index) if isinstance(values, dict) else values[index]
    return row


def _have(envs: VectorEnv, *names: str) -> bool:
    """Whether all envs have some attributes; an AsyncVectorEnv that is asked for one that is missing breaks."""
    call = getattr(envs.unwrapped, "call", None)
    return call is not None and all(all(call("has_wrapper_attr", name)) for name in names)


def _tasks_of(envs: VectorEnv) -> tuple[list[str], list[int], bool]:
    """The names of all tasks, which of them each env plays, and whether observations end in that.

    :raises ConfigurationError: for envs without tasks
    """
    get_attr: Any = getattr(envs.unwrapped, "get_attr", None)
    if _have(envs, *_FACTS):
        names = [list(each) for each in get_attr("task_names")]
        if any(each != names[0] for each in names):
            raise ConfigurationError(f"The envs of {envs} disagree on the tasks: {names}.")
        return names[0], list(get_attr("task_id")), True
    # Meta-World's envs hold their goals, which know the name of the task.
    goals: Any = get_attr("tasks") if _have(envs, "tasks") else [None]
    if not all(isinstance(each, list) and each and hasattr(each[0], "env_name") for each in goals):
        raise ConfigurationError(
            f"The envs of {envs} are no tasks: make them with make_metaworld_env(...) or make_multitask_env(...), or "
            "wrap each in sb3_softmod.TaskEnv."
        )
    played = [each[0].env_name for each in goals]
    known = list(dict.fromkeys(played))
    ids = [known.index(name) for name in played]
    shown = _have(envs, "one_hot")
    if shown and not np.array_equal(get_attr("one_hot"), np.eye(len(known))[ids]):
        raise ConfigurationError(f"The envs of {envs} number the tasks {played} differently: leave out use_one_hot.")
    return known, ids, shown
