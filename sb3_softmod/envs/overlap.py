"""Time that a learner has while the envs step."""

from __future__ import annotations

from collections.abc import Callable

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class Overlapped(VecEnvWrapper):
    """Calls ``meanwhile`` between sending the actions and waiting for the envs.

    :param venv: the envs
    :param meanwhile: what to do while they step
    """

    def __init__(self, venv: VecEnv, meanwhile: Callable[[], None]) -> None:
        super().__init__(venv)
        self._meanwhile = meanwhile

    def reset(self) -> VecEnvObs:
        """Reset the envs."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Do the other thing, then wait."""
        self._meanwhile()
        return self.venv.step_wait()
