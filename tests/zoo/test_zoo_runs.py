"""What becomes of the folder of a run that goes on, is interrupted or fails, and what ``run.json`` says of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch as th
from zoo_runs import MT3, TINY, manifest, run_of, train

from sb3_softmod import MultiTaskSAC
from sb3_softmod.cli import main
from sb3_softmod.common.cores import usable_cores


def start_training(logs: Path, steps: int, *hyperparameters: str) -> subprocess.Popen[bytes]:
    """MT-SAC on one task, in a process of its own."""
    options = f"--algo mt_sac --env reach-v3 -f {logs} -n {steps} --eval-freq -1 --seed 0 --conf-file laptop".split()
    command = [sys.executable, "-m", "sb3_softmod.cli", "train", *options, *TINY, "-params", *hyperparameters]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("options", "threads", "learn"),
    [([], None, max(usable_cores() // 2, 1)), ([], 3, 3), (["--num-threads", "2"], 3, 2)],
    ids=["half of the cores", "of the file", "of the command line"],
)
def test_threads(
    options: list[str], threads: int | None, learn: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yml"
    number = "" if threads is None else f"  num_threads: {threads}\n"
    file.write_text(f"reach-v3:\n  n_timesteps: 20\n  n_envs: 2\n  batch_size: 4\n{number}")
    command = f"train --algo mt_sac --env reach-v3 -f {tmp_path} -n 20 --eval-freq -1 --vec-env dummy --conf-file"
    before = th.get_num_threads()
    try:
        assert main([*command.split(), "laptop" if threads is None else str(file), *options]) == 0
        assert th.get_num_threads() == learn
    finally:
        th.set_num_threads(before)
    learning = "1 thread learns" if learn == 1 else f"{learn} threads learn"
    said = f"{usable_cores()} cores: {learning}, {3 if threads is None else 2} envs in the process that learns"
    assert said in capsys.readouterr().out
    assert manifest(run_of(tmp_path, "mt_sac", "reach-v3"))["hardware"]["torch_threads"] == learn


def test_a_resumed_run_keeps_the_first(tmp_path: Path) -> None:
    assert train(tmp_path, "--save-replay-buffer", steps=60) == 0
    first = run_of(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in first.rglob("*")}
    assert train(tmp_path, "-i", str(first / "MT3.zip"), steps=60) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in first.rglob("*")} == before
    second = run_of(tmp_path, number=2)
    facts = manifest(second)
    assert facts["continues"] == str(first / "MT3.zip")
    assert facts["env_steps_by_task"] == dict.fromkeys(MT3, 20)
    models = [MultiTaskSAC.load(run / "MT3.zip") for run in (first, second)]
    assert models[1]._n_updates == manifest(first)["gradient_steps"] + facts["gradient_steps"] > models[0]._n_updates
    # The statistics of the observations go on.
    counts = [model.normalization["obs_rms"][0].count for model in models]  # type: ignore[index]
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.1)


def test_runs_that_begin_at_the_same_moment(tmp_path: Path) -> None:
    """Each has a folder of its own."""
    runs = [start_training(tmp_path, 9, "n_envs:1") for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert [manifest(run_of(tmp_path, "mt_sac", "reach-v3", n))["status"] for n in (1, 2)] == ["finished"] * 2


def test_an_interrupted_run(tmp_path: Path) -> None:
    """Ctrl-C saves the model, as in RL Zoo; the manifest tells."""
    run = start_training(tmp_path, 1_000_000, "n_envs:1", "batch_size:2")
    folder = run_of(tmp_path, "mt_sac", "reach-v3")
    deadline = time.monotonic() + 60
    while not (folder / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert manifest(folder)["status"] == "running"
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 0
    facts = manifest(folder)
    assert facts["status"] == "stopped"
    assert 0 < facts["env_steps"] < 1_000_000
    assert MultiTaskSAC.load(folder / "reach-v3.zip").num_timesteps == facts["env_steps"]


def test_the_manifest(tmp_path: Path) -> None:
    assert train(tmp_path, algo="mt_mh_sac", env="MT3") == 0
    facts = manifest(run_of(tmp_path, "mt_mh_sac"))
    assert facts["method"] == "mt_mh_sac"
    assert facts["title"] == "MT-MH-SAC"
    assert facts["task_set"] == "MT3"
    assert facts["tasks"] == MT3
    assert (facts["goals"], facts["horizon"], facts["reward_version"]) == ("random", 5, "v2")
    told = facts["hyperparams"]
    assert (told["critic"], told["batch_size"], told["env_kwargs"]) == ("categorical", 6, dict(seed=3, horizon=5))
    assert told["policy_kwargs"]["net_arch"] == [200] * 3
    assert facts["seed"] == 3
    assert facts["env_steps"] == facts["planned_env_steps"] == 150
    assert facts["env_steps_by_task"] == dict.fromkeys(MT3, 50)
    model = MultiTaskSAC.load(run_of(tmp_path, "mt_mh_sac") / "MT3.zip")
    assert facts["gradient_steps"] == model._n_updates == 8
    assert facts["parameters"]["actor"] == sum(p.numel() for p in model.actor.parameters())
    assert facts["parameters"]["critic"] == sum(p.numel() for p in model.critic.parameters())
    for package in ("torch", "mujoco", "metaworld", "rl_zoo3"):
        assert facts["packages"][package] == importlib.metadata.version(package)
    assert facts["hardware"]["cores"] == os.cpu_count()
    assert facts["wall_time_s"] > 0
    assert facts["best_success_rate"] >= facts["last_success_rate"] >= 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (facts["git"] or {}).get("commit") == (head.stdout.strip() or None)


def test_the_goals_of_the_training_are_evaluated(tmp_path: Path) -> None:
    """Those of the command line too, and of another seed."""
    assert train(tmp_path, steps=60, env_kwargs=["goals:'fixed'", "seed:8"]) == 0
    run = run_of(tmp_path)
    assert main(f"evaluate {run} --episodes 1".split()) == 0
    settings = json.loads((run / "evaluation.json").read_text())["settings"]
    assert (settings["goals"], settings["seed"], settings["horizon"]) == ("fixed", 8, 5)
    assert settings["state_of_run"] == [60, 0]


def test_a_run_that_fails(tmp_path: Path) -> None:
    """The error comes through, and the manifest has it too."""
    callback = "callback:[{'zoo_failures.FailAfter': {'steps': 60}}]"
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, params=[callback])
    facts = manifest(run_of(tmp_path))
    assert facts["status"] == "failed"
    assert facts["error"] == "ZeroDivisionError: on purpose"
    assert facts["env_steps"] == 60


def test_a_mixture_for_an_unseen_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    run = run_of(tmp_path)
    capsys.readouterr()
    assert main(f"mixture {run} --task push-v3 --episodes 1 --trials 5 --seed 2".split()) == 0
    printed = capsys.readouterr().out
    assert "push-v3 by mixtures of other tasks" in printed
    assert str(run / "mixture_push-v3.json") in printed
    found = json.loads((run / "mixture_push-v3.json").read_text())
    assert set(found["mixture"]) == set(MT3)
    assert len(found["tried"]) == 5
    assert found["settings"] == dict(
        episodes=1, trials=5, final_episodes=50, seed=2, goals="random", horizon=5, reward_version="v2"
    )
    assert main(f"mixture {run} --task push-v3 --trials 3".split()) == 2
    assert "trials must be at least 4, not 3" in capsys.readouterr().err
