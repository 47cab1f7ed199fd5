"""How a model acts, here and elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softmod.algorithm.learning_sac import LearningSAC
from sb3_softmod.algorithm.mixed_model import MixedModel
from sb3_softmod.algorithm.options import check_observation
from sb3_softmod.common.checks import require_flag
from sb3_softmod.common.errors import ConfigurationError, NonFiniteError
from sb3_softmod.common.task_observation import one_hot_tasks
from sb3_softmod.deployment.deployed_policy import DeployedPolicy
from sb3_softmod.deployment.export import check_export, export_policy
from sb3_softmod.envs.normalization_statistics import normalize_observations


class ActingSAC(LearningSAC):
    """A model that acts on observations as its training normalised them, or on raw ones; or as a file of its own."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The actions for some observations; arguments as in SB3. For raw observations there is :meth:`act`.

        :param observation: ``[O + M]`` or ``[B, O + M]``, normalised as in training; the task is one-hot, or a mixture:
            no entry below 0, sum 1
        :raises ConfigurationError: for observations of another shape, without a task, or that are no numbers
        """
        check_observation(observation, self.observation_space, self.num_tasks)
        return super().predict(observation, *args, **kwargs)

    def act(self, observation: Any, task: str | Sequence[str] | np.ndarray, deterministic: bool = True) -> np.ndarray:
        """The action for a raw observation, as a robot or a simulator sends it: normalised here as in training.

        ``model.act(observation, task="reach-v3")``

        :param observation: ``[O]`` or ``[B, O]``, without the task; zero-padded to the widest of the task set where the
            tasks' own differ in width
        :param task: the name of a task, or one for each row; or ``[M]`` or ``[B, M]``: one-hot, or a mixture, for
            which observations are normalised as those of the task with the largest share
        :param deterministic: the mean instead of a sample
        :return: ``[A]`` or ``[B, A]``, in the action space
        :raises ConfigurationError: for an unknown task, or another shape
        :raises NonFiniteError: for NaN or infinity in an observation
        """
        require_flag("deterministic", deterministic)
        rows = self._raw(observation)
        tasks = one_hot_tasks(task, self.task_names, rows.shape[:-1])
        whole = np.concatenate([rows, tasks], -1)
        statistics = self.observation_statistics()
        if statistics is not None:
            whole = normalize_observations(statistics, whole)
        return self.predict(whole, deterministic=deterministic)[0]

    def with_route(self, mixture: Mapping[str, float], as_task: str | None = None) -> MixedModel:
        """This model acting by a mixture of its tasks, ``{"reach-v3": 0.5, "push-v3": 0.5}``: :class:`.MixedModel`."""
        return MixedModel(self, mixture, as_task)

    def export(self, path: str | Path, *, opset: int | None = None) -> Path:
        """Write the deterministic policy as one file that acts on raw observations without this package.

        Its inputs are "observation" ``[B, O]``, raw, and "task" ``[B, M]``, its output is "action" ``[B, A]``, all
        float32, for every number B of rows. The normalisation of the training is inside. The names of the tasks are in
        the file, as JSON: in the metadata of ONNX, or in the extra file "policy.json" of TorchScript.

        :param path: ends in ".onnx" (needs ``pip install 'sb3-softmod[onnx]'``), or ".pt" for TorchScript
        :param opset: of ONNX; default 18
        :return: the path
        :raises ConfigurationError: for another ending, or an opset that torch cannot write
        :raises FileError: if the file cannot be written; one that was there then stays as it was
        """
        path = check_export(path, opset)
        self.check_updates()
        deployed = DeployedPolicy(self.policy, self.num_tasks, self.observation_statistics())
        return export_policy(deployed, path, self.task_names, opset)

    def _raw(self, observation: Any) -> np.ndarray:
        """``[..., O]`` float32."""
        try:
            rows = np.asarray(observation, np.float32)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"An observation must be an array of numbers: {error}") from error
        width = self.observation_space.shape[0] - self.num_tasks  # type: ignore[index]
        if rows.ndim not in (1, 2) or rows.shape[-1] != width or not rows.size:
            raise ConfigurationError(
                f"act needs a raw observation ({width},) or a batch of them (n, {width}), without the task, not one of "
                f"shape {rows.shape}."
            )
        if not np.isfinite(rows).all():
            raise NonFiniteError(f"The observation to act on holds NaN or infinity: {rows}.")
        return rows
