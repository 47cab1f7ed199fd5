"""Multi-task reinforcement learning with soft modularization on Stable-Baselines3."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sb3_softmod.common.moved import find_moved_modules
from sb3_softmod.common.version import __version__
from sb3_softmod.envs.task_sets import register_all

if TYPE_CHECKING:
    from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
    from sb3_softmod.algorithm.pretrained import pretrained, save_pretrained
    from sb3_softmod.algorithm.softmod_sac import SoftModSAC
    from sb3_softmod.common.errors import (
        CheckpointError,
        ConfigurationError,
        EnvError,
        FileError,
        NonFiniteError,
        SoftModError,
    )
    from sb3_softmod.envs.gymnasium_vector import GymnasiumVecEnv
    from sb3_softmod.envs.make import make_dm_control_env, make_metaworld_env, make_multitask_env
    from sb3_softmod.envs.normalize import MultiTaskVecNormalize
    from sb3_softmod.envs.tasks import TaskEnv
    from sb3_softmod.envs.vec_env import MultiTaskVecEnv
    from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
    from sb3_softmod.networks import SoftModularNetwork
    from sb3_softmod.policies import MultiTaskSACPolicy, SoftModPolicy, SoftModularExtractor
    from sb3_softmod.saving.checkpoint_callback import CheckpointCallback
    from sb3_softmod.saving.timed_snapshots import TimedSnapshots


# Loaded when first used: a worker process that steps environments imports this package, but must not load torch.
_HOMES = {
    "CheckpointCallback": "saving.checkpoint_callback",
    "CheckpointError": "common.errors",
    "ConfigurationError": "common.errors",
    "EnvError": "common.errors",
    "FileError": "common.errors",
    "GymnasiumVecEnv": "envs.gymnasium_vector",
    "MultiTaskReplayBuffer": "learner.replay_buffer",
    "MultiTaskSAC": "algorithm.multitask_sac",
    "MultiTaskSACPolicy": "policies",
    "MultiTaskVecEnv": "envs.vec_env",
    "MultiTaskVecNormalize": "envs.normalize",
    "NonFiniteError": "common.errors",
    "SoftModError": "common.errors",
    "SoftModPolicy": "policies",
    "SoftModSAC": "algorithm.softmod_sac",
    "SoftModularExtractor": "policies",
    "SoftModularNetwork": "networks",
    "TaskEnv": "envs.tasks",
    "TimedSnapshots": "saving.timed_snapshots",
    "make_dm_control_env": "envs.make",
    "make_metaworld_env": "envs.make",
    "make_multitask_env": "envs.make",
    "pretrained": "algorithm.pretrained",
    "save_pretrained": "algorithm.pretrained",
}

__all__ = [
    "CheckpointCallback",
    "CheckpointError",
    "ConfigurationError",
    "EnvError",
    "FileError",
    "GymnasiumVecEnv",
    "MultiTaskReplayBuffer",
    "MultiTaskSAC",
    "MultiTaskSACPolicy",
    "MultiTaskVecEnv",
    "MultiTaskVecNormalize",
    "NonFiniteError",
    "SoftModError",
    "SoftModPolicy",
    "SoftModSAC",
    "SoftModularExtractor",
    "SoftModularNetwork",
    "TaskEnv",
    "TimedSnapshots",
    "__version__",
    "make_dm_control_env",
    "make_metaworld_env",
    "make_multitask_env",
    "pretrained",
    "save_pretrained",
]

find_moved_modules()
register_all()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
