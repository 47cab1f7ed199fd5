"""A callback for the tests of the zoo, which names it on the command line."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback


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
