"""What the page of the methods says: a new one is added as shown there, and all are listed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from point_mass import make_point_mass_env

from sb3_softmod import MultiTaskSAC
from sb3_softmod.methods import METHODS
from sb3_softmod.runs.parameters import count_parameters

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()


def code_below(heading: str) -> str:
    """The first Python block below a heading."""
    match = re.search(rf"^#+ {heading}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def test_adding_a_method(tmp_path: Path) -> None:
    code = code_below("Adding a method")
    assert len(code.splitlines()) < 40
    names: dict[str, Any] = {"__name__": "page"}
    exec(code, names)
    method = names["METHODS"]["task_mask"]
    env = make_point_mass_env(4)
    model = method.make(env, learning_starts=40, batch_size=32, gradient_surgery="pcgrad", seed=0)
    model.learn(100)
    model.save(tmp_path / "model")
    obs = env.reset()
    assert isinstance(obs, np.ndarray)
    again = MultiTaskSAC.load(tmp_path / "model").predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(again, model.predict(obs, deterministic=True)[0])
    assert count_parameters(method, 10).actor == 40 * 256 + 257 * 256 + 10 * 256 + 257 * 8


def test_every_method_is_listed() -> None:
    section = PAGE[: PAGE.index("## Adding a method")]
    for name, method in METHODS.items():
        assert name in section or f"`{name.removeprefix('mt_mh_sac')}`" in section, name
        assert f"`{method.policy}`" in section
