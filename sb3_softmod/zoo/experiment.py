"""RL Zoo's experiments on many tasks."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch as th
from rl_zoo3 import exp_manager
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.cores import usable_cores
from sb3_softmod.common.errors import ConfigurationError, EnvError, SoftModError
from sb3_softmod.common.files import claim_folder
from sb3_softmod.envs.make import make_task_set_env
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.task_sets import get_task_set
from sb3_softmod.envs.worker_pool import default_workers
from sb3_softmod.evaluation.callback import MultiTaskEvalCallback
from sb3_softmod.learner.learned_weights import LEARNED_WEIGHTINGS
from sb3_softmod.methods import METHODS, join_kwargs
from sb3_softmod.policies import MultiTaskSACPolicy, policy_options
from sb3_softmod.runs.manifest import RunManifest
from sb3_softmod.runs.progress import ProgressFileCallback
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback, checkpoint_callbacks
from sb3_softmod.saving.checkpoints import FOLDER as CHECKPOINTS
from sb3_softmod.saving.timed_snapshots import TimedSnapshots
from sb3_softmod.zoo import tuning
from sb3_softmod.zoo.configs import (
    HALF,
    NUM_THREADS,
    block_of,
    check_keys,
    check_parameters,
    complete,
    definition_of,
    find_config,
    load_config,
    unchanged,
)
from sb3_softmod.zoo.key_values import reason_of
from sb3_softmod.zoo.minutes_bar import MinutesBar
from sb3_softmod.zoo.monitor_file import MonitorFile
from sb3_softmod.zoo.registration import ALGOS

# RL Zoo's objective() makes one for each trial.
exp_manager.TrialEvalCallback = tuning.MultiTaskTrialCallback  # type: ignore[assignment, misc]


#: Environment steps of each task between two evaluations, and two checkpoints, unless an option says otherwise.
EVAL_EVERY = 10_000

#: Episodes of each task in an evaluation, unless an option says otherwise: RL Zoo's 5 are too few to choose the best
#: model by, see benchmarks/best_model.py.
EVAL_EPISODES = 20

#: The budget of a run that learns for some minutes: more than it can reach.
UNLIMITED = 10**12


class MultiTaskExperimentManager(ExperimentManager):
    """RL Zoo's manager for the envs of a task set.

    What is different: the envs of all tasks stand side by side, ``n_envs`` of them (default one for each task);
    evaluation covers every task; ``policy_kwargs`` and ``env_kwargs`` of the command line are joined with those of the
    file instead of replacing them; ``run.json`` says what the run was; a folder belongs to one run; and a run that was
    ended by whatever cause can be resumed. With ``args.minutes`` a run learns so long, whatever ``n_timesteps`` says.

    :param resumed_run: the folder of the run to go on with
    """

    def __init__(
        self, args: Namespace, algo: str, env_id: str, *rest: Any, resumed_run: Path | None = None, **kwargs: Any
    ) -> None:
        self.task_set = get_task_set(env_id)
        self.task_names = task_names(self.task_set)
        self.method = METHODS.get(algo)
        if self.method is None and kwargs.get("config") is None:
            raise ConfigurationError(
                f"RL Zoo has no hyperparameters for {algo} on {env_id}: name a file of yours with --conf-file."
            )
        super().__init__(args, algo, env_id, *rest, **{**kwargs, "config": find_config(kwargs.get("config"))})
        self._evaluation: MultiTaskEvalCallback | None = None
        self._snapshots: TimedSnapshots | None = None
        self._owns_folder = False
        self._finished = False
        self._resumed_run = resumed_run
        if resumed_run is not None:
            self.save_path = str(resumed_run)
            self.continue_training = True  # so that RL Zoo asks for a model that was trained before
        if self.method is not None:
            HYPERPARAMS_SAMPLER[algo] = self._suggest  # type: ignore[assignment]
            HYPERPARAMS_CONVERTER[algo] = partial(tuning.to_hyperparams, num_tasks=len(self.task_names))

    # ---------------------------------------------------------- hyperparameters

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """RL Zoo's, checked, and completed with what the method is."""
        algorithm = ALGOS[self.algo]
        check_parameters(self.custom_hyperparams or {}, algorithm)
        with self._naming_the_file(), unchanged(self.config):
            config = load_config(self.config, algorithm)
            hyperparams, _ = super().read_hyperparameters()
            if self.args.minutes:
                hyperparams["n_timesteps"] = UNLIMITED
            if self.method is not None:
                hyperparams = complete(hyperparams, self.method, self.task_set, config, self.custom_hyperparams or {})
        if self.method is not None:
            print(f"{self.algo} ({self.method.title}): {hyperparams['policy']}, {hyperparams['policy_kwargs']}")
        hyperparams.setdefault("n_envs", len(self.task_names))
        self._use_cores(hyperparams)

        of_file = block_of(config, self.task_set.name).get("env_kwargs") or {}
        # What goals a seed stands for is settled when an env is made: whoever plays the policy later needs the same.
        self.env_kwargs = {"seed": self.seed, **of_file, **(hyperparams.get("env_kwargs") or {}), **self.env_kwargs}
        self.eval_env_kwargs = {**self.env_kwargs, **(self._eval_env_kwargs_args or {})}
        for options in (self.env_kwargs, self.eval_env_kwargs):
            self.task_set.arguments(options)
        self.args.env_kwargs = hyperparams["env_kwargs"] = self.env_kwargs
        #: As they come out of all files and options, in plain words; what follows changes the values in place.
        self.told = in_words(hyperparams)
        return hyperparams, OrderedDict(sorted(hyperparams.items()))

    def _use_cores(self, hyperparams: dict[str, Any]) -> None:
        """Set the threads that a file asks for, unless ``--num-threads`` did, and say who shares the cores."""
        threads = hyperparams.pop(NUM_THREADS, None)
        if threads is None:
            return
        if self.args.num_threads <= 0:
            th.set_num_threads(max(usable_cores() // 2, 1) if threads == HALF else threads)
        workers = 0 if self.vec_env_class is DummyVecEnv else min(default_workers(), hyperparams["n_envs"])
        learning = "1 thread learns" if th.get_num_threads() == 1 else f"{th.get_num_threads()} threads learn"
        processes = "1 process" if workers == 1 else f"{workers} processes"
        where = f"in {processes}" if workers else "in the process that learns"
        print(
            f"{usable_cores()} cores: {learning}, {hyperparams['n_envs']} envs {where}, "
            f"batch of {hyperparams.get('batch_size')}, precision {hyperparams.get('precision')}, "
            f"compile {hyperparams.get('compile', False)}"
        )

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        with self._naming_the_file():
            found = super()._preprocess_hyperparams(hyperparams)
            check_keys("normalize", self.normalize_kwargs)
            check_keys("monitor_kwargs", self.monitor_kwargs)
        return found

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """What hyperparameters lead to where RL Zoo evaluates and imports what they name."""
        try:
            yield
        except SoftModError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"The hyperparameters of {self.config} (and -params) for {self.task_set.name} cannot be used: "
                f"{type(error).__name__}: {reason_of(error)}"
            ) from error

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> Any:
        """RL Zoo's, with an error that says what was looked for."""
        try:
            if storage.endswith(".log") and not os.path.isfile(storage):  # Optuna would make it
                raise FileNotFoundError("no such file")
            return super().load_trial(storage, study_name, trial_id, convert)
        except Exception as error:  # of Optuna, and of whatever stores its studies
            raise ConfigurationError(
                f"There is no trial {trial_id} of a study {study_name!r} in {storage} "
                f"({type(error).__name__}: {error})."
            ) from error

    def _suggest(self, trial: optuna.Trial, *_: Any) -> dict[str, Any]:
        """A candidate of Optuna, with the rest of the network's options as they are."""
        policy = MultiTaskSAC.policy_aliases.get(self._hyperparams["policy"], self._hyperparams["policy"])
        options = policy_options(policy) if issubclass(policy, MultiTaskSACPolicy) else []
        weighting = self._hyperparams.get("loss_weighting")
        defining = self.method is not None and "loss_weighting" in definition_of(self.method)
        stays = defining or weighting in LEARNED_WEIGHTINGS
        params = tuning.suggest(trial, options, weighting if stays else None)
        candidate = tuning.to_hyperparams(params, len(self.task_names))
        candidate["policy_kwargs"] = join_kwargs(self._hyperparams["policy_kwargs"], candidate["policy_kwargs"])
        return candidate

    # --------------------------------------------------------------------- envs

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """``n_envs`` envs of all tasks, wrapped as the hyperparameters say."""
        if self.normalize and self.frame_stack is not None:
            raise ConfigurationError("frame_stack and normalize do not go together: SB3 replays single frames then.")
        env: VecEnv = make_task_set_env(
            self.task_set,
            n_envs,
            options=self.eval_env_kwargs if eval_env else self.env_kwargs,
            wrapper=self.env_wrapper,
            n_workers=0 if self.vec_env_class is DummyVecEnv else None,
            restart_failed=not eval_env,
        )
        if not eval_env and not no_log:
            env = MonitorFile(env, self.save_path, **self.monitor_kwargs, go_on=self._resumed_run is not None)
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        if self.normalize:  # a model that goes on learning brings its statistics with it
            frozen = dict(training=False, norm_reward=False) if eval_env else {}
            env = MultiTaskVecNormalize(env, **{**self.normalize_kwargs, **frozen})
        return env if self.frame_stack is None else VecFrameStack(env, self.frame_stack)

    # ------------------------------------------------------------------ running

    def create_log_folder(self) -> None:
        """Make a folder of the run's own, unless it is resumed."""
        if self._resumed_run is None:
            self.save_path = str(claim_folder(Path(self.save_path)))
            self._owns_folder = True
        self.params_path = os.path.join(self.save_path, self.env_name)
        os.makedirs(self.params_path, exist_ok=True)
        if self.tensorboard_log is not None:
            number = self.save_path.rpartition("_")[2]
            self.tensorboard_log = os.path.join(self.tensorboard_log, f"{self.algo}_{number}")

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """RL Zoo's; without a run, because it cannot begin or because trials follow, no folder stays behind."""
        begins = False
        try:
            result = super().setup_experiment()
            if result is not None and result[0].get_vec_normalize_env() is not None and not self.normalize:
                raise ConfigurationError(
                    f"{self.trained_agent} was trained on normalised observations, and {self.config} says nothing of "
                    "normalize: name the file that it was trained with (--conf-file)."
                )
            if result is not None:
                self._tell_of_budget(result[0])
            begins = result is not None
        finally:
            if self._owns_folder and not begins:
                shutil.rmtree(self.save_path, ignore_errors=True)  # Windows keeps a file that is open
        return result

    def _tell_of_budget(self, model: BaseAlgorithm) -> None:
        starts = getattr(model, "learning_starts", 0)
        begins_anew = self._resumed_run is None and not self.trained_agent
        if begins_anew and not self.args.minutes and self.n_timesteps <= starts:
            print(
                f"Nothing will be learned: learning starts after {starts:,} environment steps (learning_starts), and "
                f"the run has {self.n_timesteps:,} (-n).",
                file=sys.stderr,
            )

    def objective(self, trial: optuna.Trial) -> float:
        """RL Zoo's; a candidate that does not fit into memory, or whose envs fail, does not end the study."""
        try:
            return super().objective(trial)
        except (EnvError, th.OutOfMemoryError) as error:
            print(f"Trial {trial.number} failed: {error}")
            raise optuna.TrialPruned from error

    def create_callbacks(self) -> None:
        """RL Zoo's, with an evaluation of every task in place of its own, and checkpoints to resume from."""
        eval_freq, self.eval_freq = self.eval_freq, -1
        every = EVAL_EVERY * len(self.task_names) if self.save_freq < 0 else self.save_freq
        bar, self.show_progress = self.show_progress, self.show_progress and not self.args.minutes
        super().create_callbacks()
        if issubclass(ALGOS[self.algo], MultiTaskSAC) and not self.optimize_hyperparameters:
            self.callbacks.append(
                CheckpointCallback(
                    self.save_path,
                    save_freq=max(every // self.n_envs, 1) if every else 0,
                    how_to_resume=f"sb3-softmod train --resume {shlex.quote(self.save_path)}",
                    verbose=self.verbose - 1,
                )
            )
        if self.args.minutes:
            self._snapshots = TimedSnapshots(self.save_path, self.args.minutes, verbose=self.verbose)
            self.callbacks.append(self._snapshots)
            if bar:  # the first, which RL Zoo closes after an error
                self.callbacks.insert(0, MinutesBar(self._snapshots))
        if eval_freq <= 0 or self.optimize_hyperparameters:
            return
        self._evaluation = MultiTaskEvalCallback(
            self.create_envs(self.n_eval_envs, eval_env=True),
            callback_on_new_best=SaveVecNormalizeCallback(save_freq=1, save_path=self.params_path),
            n_eval_episodes=self.n_eval_episodes,
            eval_freq=max(eval_freq // self.n_envs, 1),
            log_path=self.save_path,
            best_model_save_path=self.save_path,
            deterministic=self.deterministic_eval,
            verbose=self.verbose,
        )
        self.callbacks.append(self._evaluation)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self._resumed_run is None:
            policy_class = MultiTaskSAC.policy_aliases.get(hyperparams["policy"], hyperparams["policy"])
            model = super()._load_pretrained_agent(hyperparams, env)  # which takes the policy out
            if self.method is not None and model.policy_class is not policy_class:
                raise ConfigurationError(
                    f"{self.trained_agent} holds a {model.policy_class.__name__}, and {self.algo} has the policy "
                    f"{policy_class.__name__}: continue it with its own --algo."
                )
            return model
        algorithm = ALGOS[self.algo]
        assert issubclass(algorithm, MultiTaskSAC)
        options = dict(tensorboard_log=self.tensorboard_log, verbose=self.verbose)
        return algorithm.resume(self._resumed_run, env, self.device, **options)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self._resumed_run is None:  # else it is there
            super()._save_config(saved_hyperparams)

    def learn(self, model: BaseAlgorithm) -> None:
        """RL Zoo's, between the two writings of ``run.json``, with its log in ``progress.csv``."""
        self.callbacks.append(ProgressFileCallback(self.save_path))
        planned = self.n_timesteps
        if self._resumed_run is not None:
            assert isinstance(model, MultiTaskSAC)
            planned = model.num_timesteps + model.remaining_timesteps  # whatever its file of hyperparameters says now
            self.n_timesteps = None  # type: ignore[assignment]  # what is left
        path = Path(self.save_path) / "run.json"
        with RunManifest(path, model, self._facts(), self._evaluation) as manifest:
            if self._resumed_run is None:
                model.num_timesteps = 0  # learn sees to that too, if Ctrl-C does not come before
            before = model.num_timesteps
            super().learn(model)
            super().save_trained_model(model)  # before run.json says that there is a last model
            self._finished = model.num_timesteps >= planned if self._snapshots is None else self._snapshots.finished
            by_signal = any(each.ended_by for each in checkpoint_callbacks(list(self.callbacks)))
            # Ctrl-C before the first step raises an exception, which RL Zoo catches.
            by_callback = isinstance(model, MultiTaskSAC) and not by_signal and model.num_timesteps > before
            manifest.status = "finished" if self._finished else "ended early" if by_callback else "stopped"

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Nothing more: it is saved. The checkpoints of a run that is finished go: nothing is left to resume."""
        if self._finished:
            shutil.rmtree(Path(self.save_path) / CHECKPOINTS, ignore_errors=True)

    def _facts(self) -> dict[str, Any]:
        return {
            "method": self.algo,
            "title": self.method.title if self.method else self.algo,
            "task_set": self.task_set.name,
            "tasks": self.task_names,
            **self.task_set.settings(self.env_kwargs),
            "env_kwargs": self.env_kwargs,
            "eval_env_kwargs": {  # of the evaluations while it learns, where they are others
                name: value for name, value in self.eval_env_kwargs.items() if self.env_kwargs.get(name) != value
            },
            "seed": self.seed,
            "n_envs": self.n_envs,
            "planned_env_steps": self.n_timesteps,
            "planned_minutes": self.args.minutes,
            "config": self.config,
            "hyperparams": self.told,
            "continues": os.path.abspath(self.trained_agent) if self.trained_agent else None,
            "command": " ".join(sys.orig_argv),
            "arguments": sys.argv[1:],
        }


def in_words(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as JSON has them."""
    told: dict[str, Any] = json.loads(json.dumps(hyperparams, default=_name_of))
    return told


def _name_of(value: Any) -> str:
    """Of a class or function that a Python file has among its hyperparameters; the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
