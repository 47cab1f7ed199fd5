"""Every command of README and documentation runs, page by page, with a small budget."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from documentation import ROOT, blocks, pages
from zoo_runs import TINY

from sb3_softmod.cli import main
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.task_sets import get_task_set
from sb3_softmod.evaluation.evaluate import PROTOCOLS
from sb3_softmod.zoo.__main__ import PLOTS
from sb3_softmod.zoo.__main__ import run as run_script

sys.path.append(str(ROOT / "benchmarks"))
import laptop

#: By how they begin: what is run elsewhere, or not at all.
ELSEWHERE = {
    "pip install": "by hand: it takes a network",
    "make docs": "part of make test",
    "make lint": "part of make test",
    "make demo": "its path: test_demo.py",
    "make test": "runs this test",
    "python -m pytest": "part of make test",
    "make test-slow": "",
    "python benchmarks/vec_env.py": "by hand: it measures for minutes",
    "sb3-softmod grid": "tests/grid",
    "python benchmarks/grid.py": "by hand: it measures for minutes",
    "make bench": "by hand: it measures for minutes",
    "python benchmarks/end_to_end.py": "by hand: it measures for minutes",
    "python benchmarks/memory.py": "by hand: it measures for minutes",
    "python benchmarks/parts.py": "by hand: it trains for minutes",
    "python benchmarks/precision.py": "by hand: it trains for an hour",
    "sb3-softmod train --resume": "test_zoo_resume.py: the run must be unfinished",
    "python benchmarks/best_model.py": "by hand: it simulates for minutes",
    "python benchmarks/methods.py": "by hand: it measures for minutes",
    "python benchmarks/laptop.py --minutes": "as that of MT10-Conditioned, which runs here",
    "python benchmarks/laptop.py --env MT50-Conditioned": "as that of MT10-Conditioned",
    "python benchmarks/learner.py": "by hand: it measures for minutes",
    "python benchmarks/peer_jax.py": "by hand; the step itself: tests/learner/test_jax_peer.py",
    "python benchmarks/faults.py": "by hand; small versions: test_faults.py",
    "python benchmarks/new_tasks.py": "by hand: it measures for minutes",
    "sb3-softmod mixture": "test_zoo_runs.py: it needs a run on MT10",
    "sb3-softmod adapt --resume": "test_zoo_adapt.py: the run must be unfinished",
}
OPENGL = ("--video", "record_video")


def commands() -> list[str]:
    """The lines of all blocks that name no language, and commands in the text; each once."""
    lines: list[str] = []
    for text in pages().values():
        lines += [line.partition("  #")[0].strip() for block in blocks(text, "") for line in block.splitlines()]
        lines += [line for line in re.findall(r"[^`]`((?:sb3-softmod|python|make) [^`]+)`[^`]", text) if _whole(line)]
    there = [line for line in lines if not any(re.match(rf"{re.escape(start)}(\s|$)", line) for start in ELSEWHERE)]
    return list(dict.fromkeys(there))


def _whole(command: str) -> bool:
    """Whether a command in the text is one, or only speaks of it or of an option."""
    program, _, rest = command.partition(" ")
    if program == "sb3-softmod" and " " not in rest:
        return False
    if program != "sb3-softmod" or rest.split()[0] not in ("train", "adapt") or "--help" in rest:
        return True
    return "--algo" in rest if rest.startswith("train") else "--tasks" in rest


def small(arguments: list[str]) -> list[str]:
    """A training command with its own options, and a budget of 20 steps a task.

    :param arguments: of the command line, after "train"
    """
    if "--help" in arguments:
        return arguments
    num_tasks = len(task_names(get_task_set(arguments[arguments.index("--env") + 1])))
    budget = {"n_envs": 1, "batch_size": 2, "learning_starts": 5, "buffer_size": 200}
    params = [f"{name}:{number * num_tasks}" for name, number in budget.items()]
    for option, values in (("-params", [*params, "train_freq:5", "compile:False"]), ("--env-kwargs", ["horizon:5"])):
        if option not in arguments:
            arguments = [*arguments, option]
        place = arguments.index(option) + 1
        mine = "".join(arguments[place:])
        arguments[place:place] = [value for value in values if value.partition(":")[0] + ":" not in mine]
    if "--minutes" in arguments:
        place = arguments.index("--minutes") + 1
        end = next(k for k in range(place, len(arguments)) if arguments[k].startswith("-"))
        arguments[place:end] = ["0.02"]
        return [*TINY, "--eval-freq", "-1", *arguments]
    steps = ["-n", str(20 * num_tasks), "--eval-freq", str(10 * num_tasks) if num_tasks <= 10 else "-1"]
    if "--optimize" in arguments:
        steps += ["--n-trials", "2", "--n-startup-trials", "1", "--no-optim-plots"]
    return [*TINY, *steps, *arguments] if "--n-trials" not in arguments else [*TINY, *arguments, *steps]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("command", commands())
def test_command(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(command)
    found = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in arguments]  # as a shell does
    arguments = [word for words in found for word in words]
    if any(word in arguments for word in OPENGL):
        render([*arguments, "--episodes", "1"] if program == "sb3-softmod" else [*arguments, "-n", "5"])
    elif program == "sb3-softmod":
        if arguments[0] == "adapt":
            arguments += ["-n", "40", "--eval-freq", "-1", "--init", "mean", *TINY]
        if arguments[0] == "evaluate":  # whose protocol has a horizon of its own
            arguments += ["--episodes", "1"]
        assert main(["train", *small(arguments[1:])] if arguments[0] == "train" else arguments) == 0
    elif arguments[:2] == ["-m", "sb3_softmod.zoo"]:
        assert arguments[2] in PLOTS
        matplotlib.use("agg")
        monkeypatch.setattr(sys, "argv", arguments[2:])
        run_script(arguments[2])
    elif arguments[0] == "benchmarks/laptop.py":
        tiny = small(["--env", "MT3"])
        steps = tiny.index("-n")
        del tiny[steps : steps + 2]
        less = ["--env", "MT3", "--minutes", "0.02", "--algos", "mt_sac", "--seeds", "0", "--results", "results"]
        monkeypatch.setitem(PROTOCOLS["metaworld"], "n_eval_episodes", 1)
        monkeypatch.setattr(sys, "argv", [*arguments, *less, "--", *tiny])
        laptop.main()
        assert re.search(r"\| mt_sac --vec-env dummy .* \| 0\.02 \| 1 \|", (folder / "laptop" / "MT3.md").read_text())
        results = folder / "results" / "laptop_MT3.json"
        (row,) = json.loads(results.read_text())
        assert (row["method"], row["minutes"], row["episodes_a_task"]) == ("mt_sac", 0.02, 1)
        results.write_text(json.dumps([{**row, "seed": 7}]))
        laptop.main()  # again: nothing is trained or played, and what there was of another seed stays
        assert json.loads(results.read_text()) == [row, {**row, "seed": 7}]
        assert re.search(r"\| mt_sac .* \| 0\.02 \| 2 \|", (folder / "laptop" / "MT3.md").read_text())
        assert (folder / "laptop" / "MT3.png").exists()
        assert len(list((folder / "laptop").glob("*/*/evaluation_0.02min.json"))) == 1
    else:
        pytest.fail(f"no test runs {command!r}")


def render(arguments: list[str]) -> None:
    """Makes a video or, without OpenGL, says what is missing."""
    module = ["-m", "sb3_softmod.cli"] if arguments[0] == "enjoy" else []
    if ctypes.util.find_library("OSMesa") is None:
        with pytest.raises(subprocess.CalledProcessError) as error:
            run([*module, *arguments], MUJOCO_GL="osmesa")
        assert "the latter needs the Debian package libosmesa6" in error.value.stderr
        return
    run([*module, *arguments], MUJOCO_GL="osmesa")
    assert list(Path.cwd().rglob("*.mp4"))


def run(arguments: list[str], **env: str) -> None:
    subprocess.run([sys.executable, *arguments], env={**os.environ, **env}, check=True, capture_output=True, text=True)
