"""The demo's whole path, with hardly any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from sb3_softmod import MultiTaskVecNormalize, SoftModSAC
from sb3_softmod.cli import main


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second one: it keeps the first."""
    (tmp_path / "run-1").mkdir()
    command = ["demo", "--out", str(tmp_path), "--steps", "60", "--episodes", "2"]
    assert main(command) == 0
    assert not list((tmp_path / "run-1").iterdir())
    out = capsys.readouterr().out
    for task in ("reach-v3", "drawer-close-v3", "button-press-topdown-v3"):
        assert any(line.split()[1:2] == [task] for line in out.splitlines())  # a row of the table
    run = tmp_path / "run-2"
    assert (run / "routing.png").stat().st_size > 5000
    assert list((run / "tensorboard").rglob("events.*"))
    model = SoftModSAC.load(run / "model", env="MT3")
    env = model.get_vec_normalize_env()  # comes back with the model
    assert isinstance(env, MultiTaskVecNormalize)
    assert env.obs_rms[0].count > 60 * 9
    env.close()


def test_errors_are_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--episodes", "0"]) == 2
    assert capsys.readouterr().err.strip() == "sb3-softmod: --episodes must be at least 1, not 0."
    assert not list(tmp_path.iterdir())
