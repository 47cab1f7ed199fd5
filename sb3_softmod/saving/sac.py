"""What :class:`.MultiTaskSAC` writes to files, and reads from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.saved_files import naming, unpickled, writing
from sb3_softmod.common.task_observation import num_tasks_of
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.envs.make import as_env
from sb3_softmod.envs.normalization_statistics import plain_statistics
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.some_tasks import SomeTasks, among
from sb3_softmod.learner.aggregators import Surgery
from sb3_softmod.learner.gradient_step import GradientStep
from sb3_softmod.learner.learned_weights import LearnedWeights
from sb3_softmod.learner.loss_weights import LossWeighting
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.learner.reward_scale import RewardScale
from sb3_softmod.saving.checkpoints import Checkpoint
from sb3_softmod.saving.loading import check_arguments, check_custom_objects, fitting, make, read
from sb3_softmod.saving.models import check_buffer, saved_facts, saved_weights
from sb3_softmod.saving.parameters import check_parameters
from sb3_softmod.saving.plain_models import is_plain_model
from sb3_softmod.saving.resuming import Written, load_checkpoint
from sb3_softmod.saving.safe_loading import load_safely

SelfSavingSAC = TypeVar("SelfSavingSAC", bound="SavingSAC")

#: Attributes that no file holds.
_OF_THIS_PROCESS = (
    "_metrics",
    "_postponed",
    "_overlapped",
    "_turns",
    "_gradient_step",
    "reward_scale",  # see SavingSAC.largest_returns
    "learned_weights",  # see SavingSAC.loss_weighting_progress
    "success_rates",  # of the episode_statistics
    "_success_is_of",
    "resumed_from",
    "_checkpoints",
    "_state_to_continue",
    "_settings",
    "_surgery",  # see SavingSAC.surgery_state
    "_surgery_to_continue",
    "is_learning",
)


class SavingSAC(SAC):
    """SB3's SAC, whose files are written whole or not at all, and refused by name where they do not fit."""

    num_tasks: int
    nonfinite_updates: int  # that were dropped so far
    episode_statistics: EpisodeStatistics
    normalization: dict[str, Any] | None  # of a MultiTaskVecNormalize, while saved
    reward_scale: RewardScale | None
    largest_returns: list[float] | None  # of the reward_scale, while saved
    loss_weighting: LossWeighting
    loss_weighting_kwargs: dict[str, Any]
    learned_weights: LearnedWeights | None  # of the critics' losses
    loss_weighting_progress: dict[str, Any] | None  # of these, while saved
    _gradient_step: GradientStep | None
    _surgery: Surgery | None  # None without, and in a loaded model until it learns
    _surgery_to_continue: Mapping[str, Any]  # of a file, until the model learns
    #: The checkpoint that this model was resumed from.
    resumed_from: Checkpoint | None
    _checkpoints: dict[Path, Written]  # the last one in each folder, of this training
    _settings: dict[BaseCallback, dict[str, Any]]  # of the callbacks, which no checkpoint overrides
    _state_to_continue: dict[str, Any] | None  # what logger and callbacks take up when learn() begins

    @abstractmethod
    def _learning_progress(self) -> dict[str, Any]:
        """What a checkpoint holds of the learner, besides parameters, optimizers and replay buffer."""

    @property
    def surgery_state(self) -> Mapping[str, Any]:
        """What the aggregators of the gradients remember; empty where they remember nothing."""
        return self._surgery_to_continue if self._surgery is None else self._surgery.state()

    def check_updates(self) -> None:
        """Look whether all updates so far were finite; waits for a GPU, which is otherwise asked every 100 updates.

        Logging, saving and the end of ``learn`` do so by themselves.

        :raises NonFiniteError: for what has to end the run, see ``on_nonfinite``
        """
        if self._gradient_step is not None:
            try:
                self._gradient_step.finite.check()
            finally:
                self.nonfinite_updates = self._gradient_step.finite.dropped

    def _forget_gradient_step(self) -> None:
        """Let the next one be made anew, after a look at the updates of this one."""
        self.check_updates()
        self._gradient_step = None

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy``: a model that learns on by itself, without log files and checkpoints."""
        self.check_updates()
        own: dict[str, Any] = {"_gradient_step": None, "_overlapped": None, "_checkpoints": {}, "_settings": {}}
        if "_logger" in vars(self):  # its files are this model's
            own |= {"_logger": Logger(None, []), "_custom_logger": False}
        return {**vars(self), **own}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_OF_THIS_PROCESS]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        states, variables = super()._get_torch_save_params()
        return states, [*variables, *(["surgery_state"] if self.surgery_state else [])]

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """Load parameters and the state of optimizers, all or none; arguments as in SB3. Runs no code from a file.

        :raises ConfigurationError: naming the parameters that do not fit
        """
        check_device("device", device)
        given = load_path_or_dict
        if not isinstance(given, dict):
            given, _ = saved_weights(given, device)
        own = {name: recursive_getattr(self, name) for name in self._get_torch_save_params()[0]}
        check_parameters(own, given, exact_match)
        if given is load_path_or_dict:
            given = deepcopy(given)  # torch's optimizers keep the tensors that they are given: two would share theirs
        self._forget_gradient_step()  # the optimizers get the settings of the file
        super().set_parameters(given, exact_match, device)

    def save(
        self, path: str | Path | Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Save to a zip file, with the statistics of a :class:`.MultiTaskVecNormalize` and the largest return of each
        task (``reward_scaling``), and weights that are learned (``loss_weighting``); arguments as in SB3.

        :raises FileError: if it cannot be written; a file that was there then stays as it was
        :raises NonFiniteError: see :meth:`check_updates`; nothing is then written
        """
        self.check_updates()
        kept, statistics = self.normalization, self.observation_statistics()
        self.normalization = None if statistics is None else plain_statistics(statistics)
        if self.reward_scale is not None:
            self.largest_returns = self.reward_scale.largest_returns().tolist()
        if self.learned_weights is not None:
            self.loss_weighting_progress = self.learned_weights.progress()
        try:
            with writing(path, "zip") as file:
                super().save(file, exclude, include)
        finally:
            self.normalization, self.largest_returns, self.loss_weighting_progress = kept, None, None

    def observation_statistics(self) -> dict[str, Any] | None:
        """Those of the :class:`.MultiTaskVecNormalize` that this model learns in, or was saved with; None without."""
        if isinstance(self._vec_normalize_env, MultiTaskVecNormalize):
            return self._vec_normalize_env.statistics()
        return self.normalization

    def save_replay_buffer(self, path: str | Path | Any) -> None:
        """Save the replay buffer as a pickle; arguments as in SB3.

        :raises FileError: if it cannot be written; a file that was there then stays as it was
        """
        with writing(path, "pkl") as file:
            super().save_replay_buffer(file)

    def load_replay_buffer(self, path: str | Path | Any, truncate_last_traj: bool = True) -> None:
        """Load a replay buffer. Loading runs code from the file: open only files you trust.

        A :class:`.MultiTaskReplayBuffer` takes ``n_steps`` and ``gamma`` of the model.

        :param path: the file, or a file object
        :param truncate_last_traj: of no use here (the place is SB3's)
        :raises FileError: naming the file, if it is missing, broken or no replay buffer
        :raises ConfigurationError: naming the file, if it is of other tasks or spaces than the model
        """
        buffer = unpickled(path, "replay buffer", "pkl")
        facts = ("observation_space", "action_space", "num_tasks", "n_envs")
        check_buffer(path, buffer, {name: getattr(self, name) for name in facts})
        buffer.device = self.device
        if isinstance(buffer, MultiTaskReplayBuffer):
            buffer.n_steps, buffer.gamma = self.n_steps, self.gamma
        self.replay_buffer = buffer

    @classmethod
    def load(
        cls: type[SelfSavingSAC],
        path: str | Path | Any,
        env: GymEnv | VectorEnv | str | Sequence[str] | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        safe: bool = False,
        policy: str | type[SACPolicy] | None = None,
        **kwargs: Any,
    ) -> SelfSavingSAC:
        """Load a saved model; arguments as in SB3. Without ``safe``, loading runs code from the file.

        Arguments of the class in ``kwargs`` count instead of what the file says; the networks stay as they were made.
        Another ``ent_coef`` than the file's begins anew: learned from the number that it names, or fixed.

        With ``safe=True`` nothing of the file is unpickled: it gives weights, temperatures, the state of optimizers,
        the statistics of the observations, and arguments that stand there in plain text (:func:`.safe_arguments`, the
        ``policy_kwargs`` among them); the rest comes from ``env``, ``policy`` and ``kwargs``. A file of
        :func:`.save_pretrained` has all in plain text, and needs neither.

        :param path: the zip file, or a file object
        :param env: to go on training; an env, or the name of a Meta-World task or set
        :param device: where to load to
        :param custom_objects: by name, in place of what the file has and cannot be unpickled
        :param print_system_info: of this machine, and of that which saved the model
        :param force_reset: begin new episodes when training goes on
        :param safe: for files of others
        :param policy: with ``safe``: what was trained, where that is pickled
        :param kwargs: arguments of the class
        :raises FileError: naming the file, if it is missing, broken or no model
        :raises ConfigurationError: if env or arguments do not fit what is in the file; that is no ``OSError``
        """
        check_device("device", device)
        check_arguments(cls, "load", kwargs)
        facts = saved_facts(path)
        made = as_env(env, kwargs.get("seed", facts.get("seed")))
        if made is not None:
            wrapped = among(cls._wrap_env(made), facts.get("task_names"))
            made = wrapped if isinstance(wrapped, SomeTasks) else made
            saved, found = facts.get("num_tasks"), num_tasks_of(wrapped)
            if saved is not None and saved != found:
                raise ConfigurationError(f"The model in {path} was saved for {saved} tasks, but the env has {found}.")
        passed = [*(["env"] if made is not None else []), *kwargs]
        with naming(path, "model"):
            plain = is_plain_model(facts)
        if safe or plain:
            if custom_objects is not None:
                raise ConfigurationError("load(..., safe=True) takes no custom_objects: pass arguments by their names.")
            passed += ["policy"] if policy is not None else []
            with fitting(path, passed, lambda: None):
                return load_safely(cls, path, facts, made, policy, device, kwargs)
        if policy is not None:
            raise ConfigurationError("load(..., policy=...) is for safe=True: otherwise the file tells the policy.")
        objects = check_custom_objects(path, facts, custom_objects)
        alone = dict(objects) if passed else None
        passed = passed or list(objects)
        if "ent_coef" in objects:  # to be compared with the file's
            kwargs.setdefault("ent_coef", objects.pop("ent_coef"))
        content = read(path, device, objects, print_system_info)
        with fitting(path, passed, lambda: cls.load(path, None, device, alone)):
            return make(cls, content, made, device, kwargs, force_reset)

    @classmethod
    def resume(
        cls: type[SelfSavingSAC],
        path: str | Path,
        env: GymEnv | VectorEnv | str | Sequence[str],
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfSavingSAC:
        """Go on from a checkpoint of :class:`.CheckpointCallback` with ``learn()``, exactly as without the break.

        On a CPU with the same number of threads and versions what follows is bit for bit what it would have been; a
        warning says where device, threads, torch or the place in an episode is another. Files of a checkpoint run code
        when loaded: open only those that you trust.

        :param path: of the run, or of one checkpoint
        :param env: made with the same arguments as before; or the name of a Meta-World task or set
        :param device: where to learn
        :param kwargs: arguments of the class, as of :meth:`load`
        :raises CheckpointError: if there is no checkpoint that can be used, with what is wrong with each
        :raises ConfigurationError: for envs of other tasks
        """
        check_arguments(cls, "resume", kwargs, more=("custom_objects", "print_system_info"))
        return load_checkpoint(cls, path, env, device=device, **kwargs)
