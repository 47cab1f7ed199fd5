"""What the pages of methods and policies say: a new one is added as shown there, and all are listed and measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from point_mass import make_point_mass_env

from sb3_softmod import MultiTaskSAC
from sb3_softmod.methods import METHODS
from sb3_softmod.policies import POLICIES
from sb3_softmod.runs.parameters import count_parameters

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text()


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
        assert f"`{name}`" in section or f"`{name.removeprefix('mt_mh_sac')}`" in section, name
        assert f"`{method.policy}`" in section


def test_every_part_has_a_page_with_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("parts", ROOT / "benchmarks" / "parts.py")
    assert spec is not None
    assert spec.loader is not None
    parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parts)
    results = json.loads(parts.RESULTS.read_text())
    assert set(results["policies"]) == set(POLICIES)
    pages = parts.written(results)
    assert {page.stem for page in pages} == {"MultiTaskSAC", "SoftModSAC", *POLICIES, *parts.CALLBACKS, "policies"}
    assert {page.stem for page in (ROOT / "docs" / "parts").glob("*.md")} == {page.stem for page in pages} - {
        "policies"
    }
    for page, text in pages.items():
        assert page.read_text() == text
        assert ("Measured: after" in text) or ("Measured: a training" in text) or page.stem == "policies"
