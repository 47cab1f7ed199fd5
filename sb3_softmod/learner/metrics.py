"""What is logged of each task."""

from __future__ import annotations

import numpy as np
import torch as th

from sb3_softmod.learner.gradient_step import METRICS


class TaskMetrics:
    """The metrics of the gradient steps since the last log; they stay on the device until then.

    What is not finite, of an update that was dropped, is left out.

    :param num_tasks: M
    :param device: where the gradient steps are taken
    """

    def __init__(self, num_tasks: int, device: th.device) -> None:
        self._sums = th.zeros(len(METRICS), num_tasks, device=device)
        self._counts = th.zeros_like(self._sums)

    def add(self, metrics: th.Tensor) -> None:
        """Take up one gradient step.

        :param metrics: ``[len(METRICS), M]``
        """
        self._sums += metrics.nan_to_num(0.0, 0.0, 0.0)
        self._counts += metrics.isfinite()

    def pop(self) -> dict[str, np.ndarray]:
        """The mean of each metric for each task, ``[M]``, and begin anew; only metrics that a gradient step gave."""
        means = (self._sums / self._counts).cpu().numpy()
        self._sums.zero_()
        self._counts.zero_()
        return {name: values for name, values in zip(METRICS, means, strict=True) if np.isfinite(values).any()}

    def progress(self) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`set_progress` takes."""
        return self._sums.cpu().numpy().copy(), self._counts.cpu().numpy().copy()

    def set_progress(self, progress: tuple[np.ndarray, np.ndarray]) -> None:
        """Take over the gradient steps of other metrics; those of earlier versions lack the last ones."""
        for own, given in zip((self._sums, self._counts), progress, strict=True):
            own.zero_()
            own[: len(given)] = th.from_numpy(given)
