"""The methods by name, for tests of each of them."""

from __future__ import annotations

from typing import Any

import pytest

from sb3_softmod.methods import METHODS

#: MT-MH-SAC in other sizes: which only its numbers of layers and units tell from it.
OTHER_SIZES = [name for name in METHODS if name.startswith("mt_mh_sac_") and name != "mt_mh_sac_balance"]

#: Those that differ in more than that.
DISTINCT = [name for name in METHODS if name not in OTHER_SIZES]

#: For ``pytest.mark.parametrize``.
EVERY_METHOD: list[Any] = [
    pytest.param(name, marks=pytest.mark.slow) if name in OTHER_SIZES else name for name in METHODS
]
