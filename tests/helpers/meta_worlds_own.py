"""Puts Meta-World's own functions back where those of sb3_softmod.envs.metaworld_fast stand, to compare with."""

from __future__ import annotations

import runpy
import sys

import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from sb3_softmod.envs import metaworld_fast

# A copy of the module that nothing has been replaced in.
tolerance = runpy.run_path(str(reward_utils.__file__))["tolerance"]


def use_meta_worlds_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Meta-World's envs of this process compute rewards and quaternions themselves, until the test ends."""
    modules = {each.__module__: sys.modules[each.__module__] for each in ALL_V3_ENVIRONMENTS.values()}
    own = {"tolerance": tolerance, "Rotation": Rotation}
    replaced = dict.fromkeys(own, 0)
    for module in (reward_utils, *modules.values()):
        for name, function in own.items():
            if hasattr(module, name):
                assert getattr(module, name) is getattr(metaworld_fast, name)
                monkeypatch.setattr(module, name, function)
                replaced[name] += 1
    assert replaced == {"tolerance": 2, "Rotation": 22}
