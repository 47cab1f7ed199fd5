"""What surrounds the package: its version, its commands, the files that tell others of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documentation import blocks, pages, smaller

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


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rl_zoo3", "rl_zoo3.train"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sb3_softmod.zoo.train", raising=False)
    assert main(["train", "--help"]) == 2
    needed = "This needs rl_zoo3, which is not installed: pip install 'sb3-softmod[zoo]'"
    assert needed in capsys.readouterr().err


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


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """It brings all that the README's library part needs, far from this repository."""
    source, python = tmp_path / "source", tmp_path / "venv" / "bin" / "python"
    for name in ("pyproject.toml", "README.md", "LICENSE", "sb3_softmod", "zoo_configs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> str:
        words = list(map(str, command))
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", python.parents[1])
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    shutil.rmtree(source)

    assert run(python.with_name("sb3-softmod"), "--version") == f"sb3-softmod {sb3_softmod.__version__}\n"
    snippets = "\n".join(blocks(pages()["README"], "python")).replace("1_000_000", "40")
    script = tmp_path / "readme.py"
    script.write_text(
        f"{smaller(snippets)}\n"
        "import sb3_softmod\n"
        "from importlib.resources import files\n"
        "print(sb3_softmod.__file__, sb3_softmod.pretrained('MT10').task_names[0])\n"
        "for name in ('zoo_configs/laptop.yml', 'py.typed', 'report/report.html'):\n"
        "    assert files('sb3_softmod').joinpath(name).is_file(), name\n"
    )
    file, task = run(python, script).split()[-2:]
    assert Path(file).is_relative_to(tmp_path)
    assert task == "reach-v3"
