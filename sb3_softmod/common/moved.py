"""Where modules were before, whose classes files name by their path: the files of earlier versions stay readable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old path to the new paths of what was there.
MOVED = {
    "sb3_softmod.buffers": ("sb3_softmod.learner.replay_buffer", "sb3_softmod.learner.task_rings"),
    "sb3_softmod.episode_statistics": ("sb3_softmod.envs.episode_statistics",),
    "sb3_softmod.extractors": ("sb3_softmod.policies.extractors",),
}


class _Moved(MetaPathFinder, Loader):
    """Imports an old path as a module that hands on what the new one holds, so that there is one class, not two."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        for path in MOVED[module.__name__]:
            found = vars(import_module(path))
            vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})


def find_moved_modules() -> None:
    """Let ``import`` find the old paths too; a second call does nothing."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
