"""``benchmarks/laptop.py``: what is reused of earlier calls, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from documentation import ROOT
from zoo_runs import TINY, TINY_ENV, TINY_PARAMS, manifest, run_of

from sb3_softmod.cli import main
from sb3_softmod.evaluation.evaluate import PROTOCOLS
from sb3_softmod.saving.checkpoints import has_checkpoint

sys.path.append(str(ROOT / "benchmarks"))
import laptop

OPTIONS = ["--", *TINY, "--eval-freq", "-1", "--env-kwargs", *TINY_ENV, "-params", *TINY_PARAMS]


def arguments(folder: Path, minutes: str) -> list[str]:
    command = f"--env MT3 --minutes {minutes} --algos mt_sac --seeds 0 --out {folder} --results {folder}".split()
    return [str(ROOT / "benchmarks" / "laptop.py"), *command, *OPTIONS]


def test_only_evaluations_by_the_protocol_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS["metaworld"], "n_eval_episodes", 2)
    monkeypatch.setattr(sys, "argv", arguments(tmp_path, "0.0123456789"))
    laptop.main()
    (row,) = rows = json.loads((tmp_path / "laptop_MT3.json").read_text())
    assert (row["minutes"], row["episodes_a_task"]) == (0.0123457, 2)  # as the command line of train has it
    run = run_of(tmp_path, "mt_sac")
    evaluation = run / "evaluation_0.0123457min.json"
    assert main(["evaluate", str(run), "--minutes", "0.0123457", "--episodes", "1"]) == 0
    for other in ([], ["--protocol", "metaworld", "--seed", "5"], ["--protocol", "metaworld", "--episodes", "3"]):
        if other:
            assert main(["evaluate", str(run), "--minutes", "0.0123457", *other]) == 0
        laptop.main()
        assert json.loads((tmp_path / "laptop_MT3.json").read_text()) == rows
        settings = json.loads(evaluation.read_text())["settings"]
        assert (settings["protocol"], settings["n_eval_episodes"], settings["seed"]) == ("metaworld", 2, 0)
    played = evaluation.stat().st_mtime_ns
    laptop.main()
    assert evaluation.stat().st_mtime_ns == played


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")
def test_ctrl_c_lets_the_training_write_a_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *arguments(tmp_path, "5")], start_new_session=True, stdout=subprocess.DEVNULL
    )
    run, deadline = run_of(tmp_path, "mt_sac"), time.monotonic() + 60
    try:
        while not (run / "0.monitor.csv").exists() or (run / "0.monitor.csv").read_text().count("\n") < 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to both
        assert process.wait(30) == 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert manifest(run)["status"] == "stopped"
    assert has_checkpoint(run)  # from which a repeated call goes on
