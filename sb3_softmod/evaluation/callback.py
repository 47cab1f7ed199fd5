"""Evaluation while a model learns."""

from __future__ import annotations

import csv
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.checks import require_flag, require_integer
from sb3_softmod.common.csv_files import keep_rows
from sb3_softmod.common.errors import ConfigurationError, SoftModError
from sb3_softmod.common.files import as_path, check_writable, replacing
from sb3_softmod.common.task_observation import num_tasks_of
from sb3_softmod.envs.gymnasium_vector import GymnasiumVecEnv
from sb3_softmod.envs.progress import progress_of, set_progress_of
from sb3_softmod.evaluation.evaluate import TaskEvaluation, evaluate_tasks
from sb3_softmod.evaluation.evaluated_env import check_env, check_open, shares_envs, take_statistics
from sb3_softmod.evaluation.result import mean_over_tasks
from sb3_softmod.saving.training_state import callbacks_of, plain_attributes, settings_of

#: A later model takes the place of the best one while it is at most so many standard errors below the highest mean
#: success rate. Without a margin the best of many evaluations is often the luckiest: benchmarks/best_model.py.
MARGIN = 2.0

#: Success rate and return of the best evaluation, before there is one.
_NOTHING_YET = (-np.inf, -np.inf)


class MultiTaskEvalCallback(EvalCallback):
    """SB3's ``EvalCallback`` for many tasks: each is played the same number of times, and success decides.

    The best model is the latest one that cannot be told from the one with the highest mean success rate over the tasks:
    at most two standard errors below it (Breiman et al. 1984 choose so, with one). Of models that cannot differ by
    chance, all of whose episodes succeed or fail, the one with the better mean return counts; where no task reports
    success, returns alone do. How often such a model is better than the last one: ``benchmarks/best_model.py``. For
    each task the logs hold ``eval_success_rate/<task>`` and ``eval_return/<task>``; the terminal shows the means, and
    with ``verbose`` a table. In ``log_path`` it writes

    - ``evaluations.npz``, as SB3 does, with a task where SB3 has an episode: ``timesteps [n]``, ``results [n, M]``,
      ``ep_lengths [n, M]`` and ``successes [n, M]``, means over a task's episodes, and ``task_names [M]``;
    - ``evaluations.csv``, a row for each evaluation and task.

    The evaluation env gets statistics and settings of the training env's ``MultiTaskVecNormalize``. An env in which a
    model cannot be evaluated is refused when the training begins.

    SB3's callbacks for early stopping do as ``callback_after_eval``, or in a ``CallbackList`` there, what their names
    say. ``StopTrainingOnNoModelImprovement`` counts the evaluations since the highest one, by success, then by return.
    ``StopTrainingOnRewardThreshold`` sees ``best_mean_reward``: as in SB3 the highest mean return of any evaluation,
    here the mean over the tasks, unnormalised; the best model may have a lower one. To stop at a success rate, compare
    ``self.parent.best_success_rate`` in a callback of your own.

    :param eval_env: of all tasks; not the training env, nor around the same envs
    :param callback_on_new_best: called when there is a new best model, or a later one that is as good
    :param callback_after_eval: called after each evaluation
    :param n_eval_episodes: episodes of each task; the more, the less luck chooses the best model
    :param eval_freq: steps of the vectorised training env between two evaluations
    :param log_path: folder for ``evaluations.npz`` and ``evaluations.csv``; default writes neither
    :param best_model_save_path: folder for ``best_model.zip``; default saves none
    :param deterministic: act by the mean instead of a sample
    :param verbose: 1 prints each evaluation
    """

    def __init__(
        self,
        eval_env: VecEnv | VectorEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 20,
        eval_freq: int = 10_000,
        log_path: str | None = None,
        best_model_save_path: str | None = None,
        deterministic: bool = True,
        verbose: int = 1,
    ) -> None:
        if isinstance(eval_env, VectorEnv):
            eval_env = GymnasiumVecEnv(eval_env)
        if not isinstance(eval_env, VecEnv):
            raise ConfigurationError(f"eval_env must be a VecEnv of all tasks, not {eval_env!r}.")
        check_open(eval_env)
        num_tasks_of(eval_env)
        children = {"callback_on_new_best": callback_on_new_best, "callback_after_eval": callback_after_eval}
        for name, child in children.items():
            if child is not None and not isinstance(child, BaseCallback):
                raise ConfigurationError(f"{name} must be a BaseCallback (CallbackList for several), not {child!r}.")
        require_integer("n_eval_episodes", n_eval_episodes, 1)
        require_integer("eval_freq", eval_freq, -1)
        require_flag("deterministic", deterministic)
        for folder in (log_path, best_model_save_path):
            if folder is not None:
                as_path(folder)
        super().__init__(
            eval_env,
            callback_on_new_best,
            callback_after_eval,
            n_eval_episodes,
            eval_freq,
            log_path,
            best_model_save_path,
            deterministic,
            verbose=verbose,
        )
        #: Of the last evaluation and the best of all, the mean over the tasks; NaN where no task reports success.
        self.last_success_rate = self.best_success_rate = np.nan
        self.num_evaluations = 0
        #: That evaluations took so far, which :class:`.TimedSnapshots` does not count as training.
        self.seconds_of_evaluation = 0.0
        self._best = _NOTHING_YET
        self._error_of_best = 0.0
        self._reported: np.ndarray | None = None  # [M], which tasks ever reported success

    def summary(self) -> dict[str, float | None]:
        """Success rate and return of the last evaluation, and the highest of each; None for what there is not."""
        names = ("last_success_rate", "last_mean_reward", "best_success_rate", "best_mean_reward")
        values = {name: getattr(self, name) for name in names}
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    def progress(self) -> dict[str, Any]:
        """For a checkpoint: the results so far, and how far the evaluation env is, if it can tell."""
        envs = None
        if self.num_evaluations:  # before the first one it is as it was made
            with suppress(SoftModError):
                envs = progress_of(self.eval_env)
        return {"attributes": plain_attributes(self), "envs": envs}

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Go on from there; results of later steps are taken out of ``evaluations.npz`` and ``evaluations.csv``."""
        vars(self).update({**progress["attributes"], **settings_of(self)})
        if progress["envs"] is not None:
            set_progress_of(self.eval_env, progress["envs"])
        if self.log_path is not None:
            keep_rows(Path(f"{self.log_path}.csv"), "timesteps", self.num_timesteps)
            if self.evaluations_timesteps:
                self._write_arrays()

    def _init_callback(self) -> None:
        check_env(self.model, self.eval_env)
        if shares_envs(self.training_env, self.eval_env):
            raise ConfigurationError(
                "The evaluation env steps the envs of the training env: an evaluation would end their episodes, and "
                "the replay buffer would hold transitions that never happened. Make envs of their own for it."
            )
        for path in self._files():
            check_writable(path)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq:
            return True
        start = time.monotonic()
        go_on = self._evaluate()
        self.seconds_of_evaluation += time.monotonic() - start
        return go_on

    def _evaluate(self) -> bool:
        """Evaluate, log and write; whether to go on with the training."""
        take_statistics(self.model, self.eval_env)
        found = evaluate_tasks(
            self.model, self.eval_env, n_eval_episodes=self.n_eval_episodes, deterministic=self.deterministic
        )
        found = self._with_failures(found)
        self.num_evaluations += 1
        # SB3's names: other callbacks of SB3 read them.
        self.last_mean_reward = mean_over_tasks(found.mean_return)
        self.best_mean_reward = max(self.best_mean_reward, self.last_mean_reward)
        self.last_success_rate = found.mean_success_rate
        if self.log_path is not None:
            self._write(found)
        self._log(found)

        go_on = True
        score = (-np.inf if np.isnan(self.last_success_rate) else self.last_success_rate, self.last_mean_reward)
        is_best = score > self._best
        self._tell_of_improvement(is_best)
        if is_best:
            self._best, self._error_of_best = score, found.standard_error
            self.best_success_rate = self.last_success_rate
        if is_best or self.last_success_rate > self.best_success_rate - MARGIN * self._error_of_best:
            if self.verbose >= 1:
                print("New best model!" if is_best else "As good as the best model, and later: it is the best one now.")
            if self.best_model_save_path is not None:
                self.model.save(os.path.join(self.best_model_save_path, "best_model"))
            if self.callback_on_new_best is not None:
                go_on = self.callback_on_new_best.on_step()
        if self.callback is not None:
            go_on = go_on and self._on_event()
        return go_on

    def _with_failures(self, found: TaskEvaluation) -> TaskEvaluation:
        """Envs may speak of success only when there is one: a task that once reported it fails where it does not.

        With the first success of a task its failures before are known, so that earlier means do not count any more.
        """
        reports = np.isfinite(found.success_rate)
        if self._reported is None:
            # A checkpoint of an earlier version does not say what was reported before it.
            self._reported = reports.copy() if self.num_evaluations else np.zeros_like(reports)
        if self.num_evaluations and (reports & ~self._reported).any():
            self._best, self._error_of_best, self.best_success_rate = _NOTHING_YET, 0.0, -np.inf
        self._reported |= reports
        at_end = self._reported & np.isfinite(found.success_at_end_rate).any()
        return replace(
            found,
            success_rate=np.where(self._reported, np.nan_to_num(found.success_rate), np.nan).tolist(),
            success_at_end_rate=np.where(at_end, np.nan_to_num(found.success_at_end_rate), np.nan).tolist(),
        )

    def _tell_of_improvement(self, is_best: bool) -> None:
        """SB3's callback takes a ``best_mean_reward`` above the last that it saw for a new best model."""
        for each in callbacks_of(self):
            if isinstance(each, StopTrainingOnNoModelImprovement):
                each.last_best_mean_reward = -np.inf if is_best else np.inf

    def _files(self) -> list[Path]:
        """All that are written."""
        tables = [Path(f"{self.log_path}.{ending}") for ending in ("npz", "csv")] if self.log_path is not None else []
        model = self.best_model_save_path
        return [*tables, *([Path(model) / "best_model.zip"] if model is not None else [])]

    def _log(self, found: TaskEvaluation) -> None:
        means = {"mean_reward": self.last_mean_reward, "mean_ep_length": mean_over_tasks(found.length)}
        if np.isfinite(self.last_success_rate):
            means["success_rate"] = self.last_success_rate
        if self.verbose >= 1:
            print(f"Evaluation at {self.num_timesteps:,} environment steps\n{found}")
        for name, mean in means.items():
            self.logger.record(f"eval/{name}", mean)
        for metric, values in (("success_rate", found.success_rate), ("return", found.mean_return)):
            for task, value in zip(found.task_names, values, strict=True):
                if np.isfinite(value):
                    self.logger.record(f"eval_{metric}/{task}", value, exclude=("stdout", "log"))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _write(self, found: TaskEvaluation) -> None:
        assert self.log_path is not None
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(found.mean_return)
        self.evaluations_length.append(found.length)  # type: ignore[arg-type]
        self._task_names = list(found.task_names)
        self.evaluations_successes.append(found.success_rate)  # type: ignore[arg-type]
        self._write_arrays()
        columns = ("episodes", "success_rate", "success_at_end_rate", "mean_return", "length")
        path = Path(f"{self.log_path}.csv")
        goes_on = len(self.evaluations_timesteps) > 1 and path.exists()
        with replacing(path) as draft:
            if goes_on:
                shutil.copyfile(path, draft)
            with draft.open("a" if goes_on else "w", newline="") as file:
                table = csv.writer(file)
                if not goes_on:
                    table.writerow(["timesteps", "task", *columns])
                rows = zip(found.task_names, *(getattr(found, column) for column in columns), strict=True)
                table.writerows([self.num_timesteps, *row] for row in rows)

    def _write_arrays(self) -> None:
        reported = np.isfinite(self.evaluations_successes).any()
        successes = dict(successes=self.evaluations_successes) if reported else {}
        with replacing(f"{self.log_path}.npz") as draft, draft.open("wb") as file:
            np.savez(
                file,
                timesteps=self.evaluations_timesteps,
                results=self.evaluations_results,
                ep_lengths=self.evaluations_length,
                task_names=self._task_names,
                **successes,  # type: ignore[arg-type]
            )
