"""``sb3-softmod train --minutes``: runs that end by the clock, and what becomes of their models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from point_mass import make_point_mass_env
from zoo_runs import MT3, TINY, TINY_PARAMS, manifest, run_of

from sb3_softmod import MultiTaskSAC, save_pretrained
from sb3_softmod.algorithm import pretrained
from sb3_softmod.cli import main
from sb3_softmod.runs.run import load_run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import publish


def train_for(folder: Path, minutes: str, *options: str) -> Path:
    """A run of so many minutes; its folder."""
    command = f"train --algo mt_sac --env MT3 -f {folder} --conf-file laptop --seed 3 --eval-freq 75".split()
    kwargs = ["--env-kwargs", "horizon:5", "-params", *TINY_PARAMS]
    assert main([*command, *TINY, "--minutes", *minutes.split(), *kwargs, *options]) == 0
    return run_of(folder, "mt_sac")


def test_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run, its evaluation after some minutes, and its policy as a model that comes with the package."""
    run = train_for(tmp_path, "0.02 0.01", "-P")
    assert "1/1 " in capsys.readouterr().out  # seconds
    facts, marks = manifest(run), json.loads((run / "snapshots.json").read_text())
    assert (facts["status"], facts["planned_minutes"]) == ("finished", [0.01, 0.02])
    assert [mark["minutes"] for mark in marks] == [0.01, 0.02]
    assert 0.6 <= marks[0]["seconds"] <= marks[1]["seconds"] <= facts["wall_time_s"]
    assert facts["env_steps"] == marks[1]["env_steps"]
    assert MultiTaskSAC.load(run / "model_0.02min.zip").num_timesteps == marks[1]["env_steps"]
    assert not (run / "checkpoints").exists()
    assert str(load_run(run).budget) == "0.02 minutes"
    assert main(["train", "--resume", str(run)]) == 2

    assert main(["evaluate", str(run), "--minutes", "0.01", "--episodes", "1"]) == 0
    assert json.loads((run / "evaluation_0.01min.json").read_text())["settings"]["model"] == "after 0.01 minutes"
    assert main(["evaluate", str(run), "--minutes", "0.01", "--best"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err

    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "models")
    monkeypatch.setattr(publish, "PROTOCOL", None)  # the episode above will do
    options = [str(run), "--minutes", "0.01", "--name", "small", "--out", str(tmp_path / "models")]
    monkeypatch.setattr(sys, "argv", ["publish.py", *options])
    publish.main()
    card = pretrained.pretrained_card("small")
    assert (card["task_set"], card["tasks"], card["seed"], card["budget"]) == ("MT3", MT3, 3, marks[0])
    assert card["env_kwargs"] == {"seed": 3, "horizon": 5}
    assert card["settings"].items() >= {"critic": "categorical", "gamma": 0.97, "loss_weighting": "success"}.items()
    assert "n_timesteps" not in card["settings"]
    assert str(tmp_path) not in json.dumps(card)

    capsys.readouterr()
    assert main(["enjoy", "--pretrained", "small", "--episodes", "2"]) == 0
    played = capsys.readouterr().out
    assert "small (pretrained), 2 episodes a task, seed 3" in played
    assert main(f"enjoy --algo mt_sac --env MT3 -f {tmp_path} --episodes 2".split()) == 0
    model = pretrained.pretrained("small")
    assert model.normalization is not None
    np.testing.assert_array_equal(
        model.normalization["obs_rms"][0].mean,
        MultiTaskSAC.load(run / "model_0.01min.zip").normalization["obs_rms"][0].mean,  # type: ignore[index]
    )
    assert main(["enjoy", "--pretrained", "small", "--task", "reach"]) == 2
    assert "Unknown task 'reach' of MT3: did you mean 'reach-v3'?" in capsys.readouterr().err


def test_a_run_that_was_ended_goes_on(tmp_path: Path) -> None:
    """Its minutes begin where the checkpoint was."""
    marker = tmp_path / "ended"
    end = f"callback:[{{'zoo_failures.EndOnce': {{'steps': 90, 'marker': '{marker}', 'how': 'SIGTERM'}}}}]"
    run = train_for(tmp_path, "0.05", end)
    assert manifest(run)["status"] == "stopped"
    assert not (run / "snapshots.json").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert manifest(run)["status"] == "finished"
    (mark,) = json.loads((run / "snapshots.json").read_text())
    assert mark["env_steps"] > 90
    assert 3.0 <= mark["seconds"] < 10


def test_a_policy_of_other_tasks_is_not_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    model = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(3), policy_kwargs=dict(net_arch=[4]))
    card = {"task_set": "MT3", "env_kwargs": {}, "success": {f"corner-{i}": 1.0 for i in range(3)}}
    save_pretrained(model, tmp_path / "tiny", card)
    assert main(["enjoy", "--pretrained", "tiny", "--episodes", "1"]) == 2
    assert "The model knows the tasks corner-0, corner-1, corner-2" in capsys.readouterr().err
