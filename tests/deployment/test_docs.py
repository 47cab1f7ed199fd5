"""The snippets of docs/deployment.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    actions = []
    for snippet in snippets:
        exec(snippet, names)
        actions.append(np.ravel(names["action"]))
    assert len(snippets) == 4
    for action in actions:  # of reach-v3, in all three ways
        np.testing.assert_allclose(action, actions[0], rtol=0, atol=1e-5)
    assert names["names"] == names["model"].task_names
    assert names["actions"].shape == (2, 4)
