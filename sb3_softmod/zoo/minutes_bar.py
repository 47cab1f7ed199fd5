"""The progress bar of a training that lasts so many minutes."""

from __future__ import annotations

from stable_baselines3.common.callbacks import ProgressBarCallback
from tqdm.rich import tqdm

from sb3_softmod.saving.timed_snapshots import TimedSnapshots


class MinutesBar(ProgressBarCallback):
    """SB3's bar, of seconds of training instead of steps, whose number is not known before.

    :param snapshots: tells the time
    """

    def __init__(self, snapshots: TimedSnapshots) -> None:
        super().__init__()
        self._snapshots = snapshots

    def _on_training_start(self) -> None:
        self.pbar = tqdm(total=60 * self._snapshots.minutes[-1], unit="s")

    def _on_step(self) -> bool:
        self.pbar.update(min(self._snapshots.seconds(), self.pbar.total) - self.pbar.n)
        return True

    def _on_training_end(self) -> None:
        if hasattr(self, "pbar"):  # RL Zoo ends its first callback after whatever error, also before the training began
            super()._on_training_end()
