"""Small versions of ``benchmarks/faults.py``: workers that are killed while a model learns, and memory that stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import faults


def test_a_run_survives_the_death_of_its_workers() -> None:
    rows = faults.train_under_fire(kills=5)
    assert [row for row in rows if not row.ok] == []
    assert {row.what: row.value for row in rows}["workers started again"] == 5


@pytest.mark.slow
def test_a_run_survives_many_deaths_of_its_workers() -> None:
    assert [row for row in faults.train_under_fire(kills=30, seed=1) if not row.ok] == []


def test_memory_files_and_shared_memory_stay() -> None:
    """Short: what the interpreter itself takes in so few steps is allowed for."""
    rows = faults.soak_for(40_000, growth=0.05)
    assert len(rows) == 7
    assert [row for row in rows if not row.ok] == []


@pytest.mark.slow
def test_memory_files_and_shared_memory_stay_for_long() -> None:
    assert [row for row in faults.soak_for(400_000) if not row.ok] == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A section of one's own is a function in a dictionary; what is not as it must be is said, and the status is 1."""
    monkeypatch.setitem(faults.SECTIONS, "mine", lambda args: [faults.Row("apples", 3, "4", False)])
    monkeypatch.setattr(sys, "argv", ["faults.py", "--only", "mine", "--out", str(tmp_path / "faults.json")])
    assert faults.main() == 1
    assert "apples" in capsys.readouterr().out
    assert '"apples"' in (tmp_path / "faults.json").read_text()
