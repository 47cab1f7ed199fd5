"""Many tasks, stepped by a few processes, as one SB3 ``VecEnv``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from operator import methodcaller
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_softmod.common.checks import require_flag, require_integer
from sb3_softmod.common.errors import EnvError, SoftModError
from sb3_softmod.envs import worker
from sb3_softmod.envs.arguments import as_actions, check_makers, number_of_envs
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.envs.origin import Origin, origin_of
from sb3_softmod.envs.progress import Journal, check, replays, warn_of_strayed
from sb3_softmod.envs.rotation import Rotation
from sb3_softmod.envs.worker import FACTS, Episode, TaskMaker
from sb3_softmod.envs.worker_pool import WorkerPool
from sb3_softmod.envs.worker_process import AnswerLost

#: How many episodes of each task :meth:`MultiTaskVecEnv.episode_table` remembers.
EPISODES_KEPT = 1000


class MultiTaskVecEnv(VecEnv):
    """M tasks in a few worker processes; each process steps its share of the envs.

    The trajectories depend on the task makers and the seeds alone, not on the number of workers. Mid-episode an
    ``info`` holds ``task_id``, ``task_name``, ``success`` (of this step, if the env reports it) and
    ``TimeLimit.truncated``; everything else that an env reports comes with the last info of an episode only.

    An env that raises, or a process that dies, closes all envs and raises :class:`.EnvError`; with ``restart_failed``
    the envs of that worker are built anew instead, and their episodes end, truncated, where they were, with reward 0
    and without ``success`` or ``episode`` in their info; their sequences of goals go on.

    :param task_makers: one for each task: ``make(copy) -> TaskEnv``, picklable by cloudpickle
    :param envs_per_task: copies of each task; they stand together: env ``task * envs_per_task + copy``
    :param n_envs: at most M. Fewer envs than tasks go on to another task at the end of each episode, in turn, so that
        the numbers of episodes that the tasks began never differ by more than 1; ``copy`` is then the index of the env.
        Each env builds for itself the tasks that it plays: take an ``n_envs`` that divides M to build each task once.
    :param n_workers: processes, at most one for each env; 0: no process, all happens here. Default one for each core,
        but none in a daemonic process, such as those of a ``multiprocessing.Pool``.
    :param restart_failed: rebuild the envs of a worker that fails instead of raising
    :raises ConfigurationError: for impossible numbers, or tasks that differ in their spaces
    """

    def __init__(
        self,
        task_makers: Sequence[TaskMaker],
        *,
        envs_per_task: int = 1,
        n_envs: int | None = None,
        n_workers: int | None = None,
        restart_failed: bool = False,
    ) -> None:
        self._arguments = dict(
            envs_per_task=envs_per_task, n_envs=n_envs, n_workers=n_workers, restart_failed=restart_failed
        )
        check_makers(task_makers)
        self._makers = list(task_makers)
        require_flag("restart_failed", restart_failed)
        size = number_of_envs(len(task_makers), envs_per_task, n_envs)
        self._rotation = Rotation(len(task_makers), size) if size < len(task_makers) else None
        self._restart_failed = restart_failed
        self._pool = WorkerPool(
            task_makers,
            tasks=[index if self._rotation else index // envs_per_task for index in range(size)],
            copies=[index if self._rotation else index % envs_per_task for index in range(size)],
            n_workers=n_workers,
            auto_reset=self._rotation is None,
        )
        self._facts = self._pool.facts
        self._tasks = self._pool.tasks
        self._steps = np.zeros(size, self._pool.dtype)  # the last step of all envs
        # Where no exception, Ctrl-C for one, may have left it half done; "lost": until the next reset.
        self._phase: Literal["ready", "stepping", "lost"] = "lost"
        self._answers: dict[int, Any] = {}  # of the workers, to "step", as far as they came; an error is one too
        #: Workers that were started again because they failed.
        self.num_restarts = 0
        self._unproven: set[int] = set()  # workers that took no step since they were started again
        #: M
        self.num_tasks: int = self._facts["num_tasks"]
        #: The name of each task.
        self.task_names: list[str] = list(self._facts["task_names"])
        self._statistics = EpisodeStatistics(self.num_tasks, EPISODES_KEPT)
        self._journal = Journal(size)
        super().__init__(size, self._facts["observation_space"], self._facts["action_space"])

    @property
    def task_ids(self) -> np.ndarray:
        """The task that each env plays now, ``[n_envs]`` integers."""
        return np.array(self._tasks)

    # ---------------------------------------------------------------- stepping

    def reset(self) -> np.ndarray:
        """Begin an episode in every env, of the task that it plays now, with the seeds and options set before.

        :return: observations ``[n_envs, O + M]``
        """
        self._check_open()
        self._take_answers()  # of a step that nobody waited for
        self._phase = "lost"
        if self._rotation:
            self._rotation.seed(self._seeds, self._tasks)
        idle: Sequence[int] = range(self.num_envs)
        while idle:
            idle = self._begin(
                {index: (self._tasks[index], self._seeds[index], self._options[index]) for index in idle}
            )
        self._reset_seeds()
        self._reset_options()
        observations = self._steps["observation"].copy()
        self._phase = "ready"
        return observations

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds for the next reset: of each env its own, from this one on; after the largest of 32 bits comes 0."""
        super().seed(seed)
        self._seeds = [None if each is None else each % 2**32 for each in self._seeds]
        return self._seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Let the workers take a step, and return at once.

        :param actions: ``[n_envs, *action shape]``
        :raises ConfigurationError: for another shape, or numbers that are no actions
        :raises NonFiniteError: for NaN or infinity
        """
        self._check_open()
        if self._phase == "stepping":
            raise SoftModError("step_async was called twice: call step_wait for the results of the first, or reset.")
        self._check_not_lost()
        wanted = self._steps["action"]
        wanted[...] = as_actions(actions, wanted.shape, wanted.dtype, self._pool.name)
        self._phase = "lost"
        for group, share in zip(self._pool.workers, self._pool.shares, strict=True):
            group.steps["action"] = wanted[share]
            group.send("step")
        self._answers = {}
        self._phase = "stepping"

    def step_wait(self) -> VecEnvStepReturn:
        """The results of the step.

        :return: observations ``[n_envs, O + M]``, rewards ``[n_envs]`` float32, dones ``[n_envs]`` and infos
        :raises EnvError: if an env raised or a worker died
        """
        self._check_open()
        if self._phase == "ready":
            raise SoftModError("step_wait was called before step_async.")
        self._take_answers()
        self._check_not_lost()
        self._phase = "lost"
        self._journal.step(self._steps["action"])
        ends: dict[int, dict[str, Any]] = {}
        idle: list[int] = []  # envs that wait for an episode
        for number, answer in self._answers.items():
            if isinstance(answer, SoftModError):
                lost = self._restart(number, answer)
                ends |= self._cut_off(lost)
                idle += lost
                continue
            self._unproven.discard(number)
            self._steps[self._pool.shares[number]] = self._pool.workers[number].steps
            if answer is not None:
                infos, origins, reset_infos = answer
                ends |= infos
                idle += infos.keys() - reset_infos.keys()
                for index, origin in origins.items():
                    self._journal.end(index, origin)
                for index, info in reset_infos.items():
                    self._began(index, (self._tasks[index], None, {}), origins[index], info)
        infos = self._infos(ends)
        due: dict[int, Episode] = {}
        while idle:
            # What a worker failed to begin is still to come: its task keeps its turn.
            due = {index: due.get(index) or self._next_episode(index) for index in sorted(idle)}
            lost = self._begin(due)
            for index, info in self._cut_off([index for index in lost if index not in ends]).items():
                infos[index] = ends[index] = info
            idle = lost
        self._statistics.add(ends.values())
        steps = self._steps
        dones = steps["terminated"] | steps["truncated"]
        results = steps["observation"].copy(), steps["reward"].copy(), dones, infos
        self._phase = "ready"
        return results

    def close(self) -> None:
        """Close all envs and end the workers; a second time does nothing."""
        self._pool.close()

    def episode_table(self, last: int = 100) -> list[dict[str, Any]]:
        """How the last episodes of each task went.

        :param last: episodes of each task, at most :data:`EPISODES_KEPT`
        :return: a row for each task: ``task``, ``episodes``, and their means ``return``, ``length``, ``success_rate``
            (success at any step) and ``success_at_end_rate``, NaN without episodes; a success that no task reports is
            left out
        """
        require_integer("last", last, 1, EPISODES_KEPT)
        statistics = self._statistics.last(last)
        means = statistics.means()
        return [
            {"task": name, "episodes": episodes, **{metric: float(values[task]) for metric, values in means.items()}}
            for task, (name, episodes) in enumerate(zip(self.task_names, statistics.num_episodes(), strict=True))
        ]

    # ---------------------------------------------------------------- progress

    def progress(self) -> dict[str, Any]:
        """How far the envs are, between two steps, for :meth:`set_progress`; plain data that can be pickled.

        :raises SoftModError: before the first reset, or between ``step_async`` and ``step_wait``
        """
        self._check_open()
        if self._phase != "ready" or None in self._journal.episodes:
            raise SoftModError("The envs have no progress before the first reset, nor while they step.")
        return {
            **self._made_of(),
            **self._journal.progress(),
            "rotation": self._rotation and self._rotation.progress(),
            "statistics": self._statistics.progress(),
            "num_restarts": self.num_restarts,
            "pending": (list(self._seeds), list(self._options)),
        }

    def set_progress(self, progress: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Go on where other envs of the same arguments were, whatever their seed and number of workers.

        What comes after is bit for bit what those envs would have given: each plays its episode again. If that leads
        elsewhere, because an env hides its randomness, a warning names it, and it begins its next episode.

        :param progress: of those
        :return: the observations now, ``[n_envs, O + M]``, and which envs began another episode, ``[n_envs]``
        :raises ConfigurationError: for a progress of other tasks, another number of envs, horizon or goals
        """
        self._check_open()
        check(progress, self._made_of())
        self._take_answers()
        self._phase = "lost"
        self._tasks[:] = [task for task, _, _ in progress["episodes"]]
        if self._rotation:
            self._rotation.set_progress(progress["rotation"])
        self._statistics.set_progress(progress["statistics"])
        self._seeds, self._options = (list(pending) for pending in progress["pending"])
        self._journal.set_progress(progress)
        self._pool.settings = progress["settings"]
        self.num_restarts = progress["num_restarts"]
        self._steps[:] = progress["last"]
        resumed = self._pool.resume(progress["origins"], replays(progress))
        strayed = {}
        for index, (same, origin, info) in sorted(resumed.items()):
            self.reset_infos[index] = info
            if not same:
                strayed[index] = self._pool.name(index)
                self._began(index, (self._tasks[index], None, {}), origin, info)
        if strayed:
            warn_of_strayed(strayed)
        self._phase = "ready"
        return self._steps["observation"].copy(), np.isin(range(self.num_envs), list(strayed))

    def __deepcopy__(self, memo: dict[int, Any]) -> MultiTaskVecEnv:
        """Other envs with workers of their own, which go on where these are, as with :meth:`set_progress`."""
        self._check_open()
        copy = type(self)(self._makers, **self._arguments)  # type: ignore[arg-type]
        if None in self._journal.episodes:  # before the first reset
            copy._seeds, copy._options = deepcopy((self._seeds, self._options), memo)
        else:
            copy.set_progress(deepcopy(self.progress(), memo))
        return copy

    def _made_of(self) -> dict[str, Any]:
        return {"task_names": self.task_names, "settings": self._pool.settings, "last": self._steps.copy()}

    # ----------------------------------------------------------- talk to the envs

    def has_attr(self, attr_name: str) -> bool:
        """Whether all envs have an attribute."""
        return attr_name in (*FACTS, "tasks_in_turn") or all(self._apply(methodcaller("has_wrapper_attr", attr_name)))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of some envs, each with the task that it plays now."""
        if attr_name == "task_id":
            return [self._tasks[index] for index in self._listed(indices)]
        if attr_name in FACTS:
            return [self._facts[attr_name] for _ in self._listed(indices)]
        if attr_name == "tasks_in_turn":
            everything = tuple(range(self.num_tasks))
            return [everything if self._rotation else (self._tasks[index],) for index in self._listed(indices)]
        self._require(attr_name, indices)
        return self._apply(methodcaller("get_wrapper_attr", attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some envs, each with the task that it plays now."""
        self._apply(setattr, indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of some envs, each with the task that it plays now."""
        self._require(method_name, indices)
        return self._apply(worker.call_method, indices, method_name, method_args, method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether some envs are wrapped with a class."""
        return self._apply(worker.is_wrapped, indices, wrapper_class.__module__, wrapper_class.__qualname__)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of each env; needs ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            warnings.warn(f'Pictures need envs with render_mode="rgb_array", not {self.render_mode!r}.', stacklevel=2)
            return [None] * self.num_envs
        return self._apply(worker.call_method, None, "render", (), {})

    def _require(self, name: str, indices: VecEnvIndices) -> None:
        found = self._apply(methodcaller("has_wrapper_attr", name), indices)
        for index, has in zip(self._listed(indices), found, strict=True):
            if not has:
                raise AttributeError(f"Env {index} (task {self._pool.name(index)!r}) has no attribute {name!r}.")

    def _apply(self, function: Callable[..., Any], indices: VecEnvIndices = None, *arguments: Any) -> list[Any]:
        """``function(env, *arguments)`` for some envs."""
        self._check_open()
        self._take_answers()
        targets = self._listed(indices)
        parts = self._pool.split(targets).items()
        values = self._pool.demand("apply", {number: (function, part, *arguments) for number, part in parts})
        return [values[index] for index in targets]

    def _listed(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]

    # ----------------------------------------------------------------- workers

    def _restart(self, number: int, error: SoftModError) -> list[int]:
        """Replace a worker that failed; raise its error if that is not wanted, or did not help the last time.

        :return: its envs, none of which plays
        """
        if not (self._restart_failed and isinstance(error, EnvError)) or number in self._unproven:
            self.close()
            raise error
        warnings.warn(f"Building the envs of a worker anew after this error: {error}", stacklevel=3)
        self.num_restarts += 1
        self._unproven.add(number)
        lost = self._pool.envs(number)
        cut = {index: episode for index in lost if (episode := self._journal.episodes[index]) is not None}
        try:
            self._pool.restart(number)
            # The sequences of goals go on after those of the episodes that are lost: these begin once more for that.
            self._pool.resume({key: value for key, value in self._journal.origins.items() if key[0] in lost}, {})
            self._pool.demand("begin", {number: (cut,)})
            for index, origin in zip(cut, self._apply(origin_of, list(cut)), strict=True):
                self._journal.end(index, origin)
        except BaseException:
            self.close()
            raise
        return lost

    def _take_answers(self) -> None:
        """Wait for the answers to "step" that are still to come. An interrupted wait can be taken up again."""
        if self._phase != "stepping":
            return
        for number in range(len(self._pool.workers)):
            if number in self._answers:
                continue
            try:
                self._answers[number] = self._pool.receive(number)
            except AnswerLost:
                self._phase = "lost"
                return
            except SoftModError as error:
                self._answers[number] = error

    # ---------------------------------------------------------------- episodes

    def _begin(self, episodes: dict[int, Episode]) -> list[int]:
        """Begin episodes.

        :return: the envs of workers that failed meanwhile: none of them plays
        """
        parts = self._pool.split(episodes)
        questions = {number: ({index: episodes[index] for index in part},) for number, part in parts.items()}
        begun, errors = self._pool.ask("begin", questions)
        for index, (origin, info) in begun.items():
            self._began(index, episodes[index], origin, info)
        return [index for number, error in errors.items() for index in self._restart(number, error)]

    def _began(self, index: int, episode: Episode, origin: Origin, info: dict[str, Any]) -> None:
        self._journal.begin(index, episode, origin)
        self._steps["observation"][index] = self._pool.step_of(index)["observation"]
        self.reset_infos[index] = info

    def _next_episode(self, index: int) -> Episode:
        if self._rotation is None:
            return self._tasks[index], None, {}
        task = self._tasks[index] = self._rotation.next_task()
        return task, self._rotation.seed_of(index, task), {}

    def _cut_off(self, indices: list[int]) -> dict[int, dict[str, Any]]:
        """End the episodes of envs that are gone where they were last seen; their last infos."""
        self._steps["reward"][indices] = 0
        self._steps["terminated"][indices] = False
        self._steps["truncated"][indices] = True
        return {
            index: {
                "task_id": self._tasks[index],
                "task_name": self._pool.name(index),
                "TimeLimit.truncated": True,
                "terminal_observation": self._steps["observation"][index].copy(),
            }
            for index in indices
        }

    def _infos(self, ends: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        """The infos of a step: those that came from the envs, and the rest from what all envs share."""
        infos = []
        for index, (task, success) in enumerate(zip(self._tasks, self._steps["success"].tolist(), strict=True)):
            info = ends.get(index)
            if info is None:
                info = {"task_id": task, "task_name": self.task_names[task], "TimeLimit.truncated": False}
                if success != worker.NO_SUCCESS:
                    info["success"] = bool(success)
            infos.append(info)
        return infos

    def _check_not_lost(self) -> None:
        if self._phase == "lost":
            raise SoftModError(
                "This env needs reset() before a step: it had none yet, or an exception such as Ctrl-C interrupted its "
                "last reset or step."
            )

    def _check_open(self) -> None:
        if not self._pool.close.still_active():
            raise SoftModError("This env is closed, by close() or by an error before: make a new one.")
