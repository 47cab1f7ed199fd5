"""What surrounds the package: its version, its commands, the files that tell others of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sb3_softmod
from sb3_softmod.cli import main

ROOT = Path(__file__).parents[1]


def test_the_version_by_python_m() -> None:
    command = [sys.executable, "-m", "sb3_softmod", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"sb3-softmod {sb3_softmod.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    printed = capsys.readouterr().out
    for word in ("evaluate", "export", "--protocol"):
        assert word in printed
    for word in ("--conf-file", "--minutes", "--resume", "softmod_deep", "--load-best", "--drop-tasks", "--status"):
        assert word in printed  # of train, enjoy, adapt and grid, whose modules read their arguments themselves


def test_completion_of_no_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bsh"]) == 2
    assert "Unknown --print-completion 'bsh': did you mean 'bash'" in capsys.readouterr().err


def test_files_for_others() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sb3_softmod.__version__
    assert citation["references"][0]["year"] == 2020
    assert (ROOT / "sb3_softmod" / "py.typed").exists()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "import-linter"]
