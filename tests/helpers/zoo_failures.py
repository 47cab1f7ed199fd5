"""Callbacks for the tests of the zoo, which names them on the command line."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softmod import ConfigurationError


class FailAfter(BaseCallback):
    """Raises after some steps.

    :param steps: environment steps
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.steps:
            raise ZeroDivisionError("on purpose")
        return True


class FailsAtReset(gym.Wrapper):
    """An env that cannot begin."""

    def reset(self, **_: Any) -> Any:
        raise ConfigurationError("on purpose")


class EndOnce(FailAfter):
    """Ends the training after some steps, if no training was ended by it before.

    :param steps: environment steps
    :param marker: a file that it makes when it ends a training
    :param how: the name of a signal that it sends to this process, or "NaN", that it puts into a parameter; default
        raises instead
    """

    def __init__(self, steps: int, marker: str, how: str | None = None) -> None:
        super().__init__(steps)
        self.marker = Path(marker)
        self.how = how

    def _on_step(self) -> bool:
        if self.num_timesteps < self.steps or self.marker.exists():
            return True
        self.marker.touch()
        if self.how is None:
            return super()._on_step()
        if self.how == "NaN":
            next(self.model.policy.critic.parameters()).data[0, 0] = th.nan  # type: ignore[union-attr]
        else:
            signal.raise_signal(signal.Signals[self.how])
        return True
