"""``sb3-softmod adapt``: a run that adapts another one's policy, its folder, and how it goes on."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from zoo_runs import MT3, config, manifest, run_of, train

from sb3_softmod import FileError, MultiTaskSAC
from sb3_softmod.cli import main
from sb3_softmod.runs.progress import ProgressFileCallback
from sb3_softmod.saving.checkpoints import CheckpointFolder

SET = "MT3+coffee-button-v3"
#: Few evaluations, all in this process.
TINY = "--eval-episodes 1 --eval-freq 40 --save-freq 20 --vec-env dummy --verbose 0 --num-threads 1"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three tasks."""
    folder = tmp_path_factory.mktemp("source")
    assert train(folder, steps=60) == 0
    return run_of(folder)


def adapt(source: Path, folder: Path, options: str = "", steps: int = 80) -> int:
    return main(f"adapt {source} --tasks coffee-button-v3 -n {steps} -f {folder} {TINY} {options}".split())


def test_a_run(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in (
        ("seed:5", "-params takes no seed: it is an option of its own"),
        ("gamma:0.9 -params gamma:0.8", "-params gives 'gamma' twice"),
    ):
        assert adapt(source, tmp_path, f"-params {wrong}") == 2
        assert said in capsys.readouterr().err
    assert adapt(source, tmp_path, "-params learning_rate:3e-3 -params gamma:0.9") == 0
    run = run_of(tmp_path, env=SET)
    found = manifest(run)
    adapted = MultiTaskSAC.load(run / f"{SET}.zip")
    assert (adapted.learning_rate, adapted.gamma) == (3e-3, 0.9)
    assert found["hyperparams"]["gamma"] == 0.9
    assert found["hyperparams"]["source"]["budget"] == "60 steps"
    assert found["status"] == "finished"
    assert found["tasks"] == [*MT3, "coffee-button-v3"]
    assert found["env_steps_by_task"] == {**dict.fromkeys(MT3, 0), "coffee-button-v3": 80}
    assert found["horizon"] == 5
    origin = found["adapted_from"]
    assert (origin["run"], origin["task_set"], origin["tune"]) == (str(source), "MT3", "routing")
    assert origin["init"]["coffee-button-v3"] in MT3
    before, after = MultiTaskSAC.load(source / "MT3.zip"), MultiTaskSAC.load(run / f"{SET}.zip")
    assert before.normalization is not None
    assert after.normalization is not None
    for old, new in zip(before.normalization["obs_rms"] * 3, after.normalization["obs_rms"], strict=False):
        np.testing.assert_array_equal(old.mean, new.mean)
    states, task = np.random.default_rng(0).normal(size=(3, 39)), np.eye(4)[:3]
    raw = np.concatenate([states, task], 1).astype(np.float32)
    ours, theirs = (model.predict(obs, deterministic=True)[0] for model, obs in ((after, raw), (before, raw[:, :-1])))
    np.testing.assert_array_equal(ours, theirs)

    assert main(["report", str(run)]) == 0
    assert "left out" not in capsys.readouterr().err
    again = f"sb3-softmod adapt {source} --tasks coffee-button-v3 -n 80 -f {tmp_path}"
    assert again in (run / "report.html").read_text()
    assert main(f"evaluate {run} --episodes 1".split()) == 0
    assert main(f"enjoy --algo softmod_deep --env {SET} -f {tmp_path} --episodes 1".split()) == 0
    assert "coffee-button-v3" in capsys.readouterr().out


def test_everything_learns_in_all_tasks(source: Path, tmp_path: Path) -> None:
    assert adapt(source, tmp_path, "--tune all --init mean --eval-freq -1") == 0
    assert manifest(run_of(tmp_path, env=SET))["env_steps_by_task"] == dict.fromkeys([*MT3, "coffee-button-v3"], 20)


def test_the_goals_of_the_source(tmp_path: Path) -> None:
    """Without its tasks, the set of the adapted run has other ones by default."""
    command = f"train --algo mt_sac --env MT10-Fixed -f {tmp_path} -n 10 --conf-file laptop --eval-freq -1".split()
    options = ["--vec-env", "dummy", "--verbose", "0", "--env-kwargs", "horizon:5"]
    options += ["-params", "n_envs:10", "learning_starts:0"]
    assert main([*command, *options]) == 0
    source = run_of(tmp_path, "mt_sac", "MT10-Fixed")
    options = ["--tune", "all", "--init", "mean", "--drop-tasks", "--device", "cpu", "--eval-freq", "-1"]
    assert adapt(source, tmp_path, " ".join(options), steps=10) == 0
    run = run_of(tmp_path, "mt_sac", "coffee-button-v3")
    assert manifest(run)["goals"] == config(run)["env_kwargs"]["goals"] == "fixed"
    found = manifest(run)["hyperparams"]
    assert found.items() >= dict(tune="all", init="mean", keep_tasks=False).items()
    assert found["source"]["gamma"] == 0.97  # of what it was adapted from


def test_goes_on_exactly(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapt(source, tmp_path / "whole") == 0

    def end(callback: ProgressFileCallback) -> bool:
        return bool(1 / (50 - callback.num_timesteps))

    with monkeypatch.context() as patch:
        patch.setattr(ProgressFileCallback, "_on_step", end)
        with pytest.raises(ZeroDivisionError):
            adapt(source, tmp_path / "ended")
    run = run_of(tmp_path / "ended", env=SET)
    assert manifest(run)["status"] == "failed"
    for path in run.glob("checkpoints/*/manifest.json"):
        content = json.loads(path.read_text())
        content["facts"]["seconds"] += 1000
        del content["sha256"]
        seal = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        path.write_text(json.dumps({**content, "sha256": seal}))
    assert main(f"train --resume {run}".split()) == 2
    assert main(f"adapt --resume {run} --vec-env dummy --verbose 0 --num-threads 1".split()) == 0
    assert manifest(run)["status"] == "finished"
    assert 1000 < manifest(run)["wall_time_s"] < 1600  # with what it had learned before
    ours, theirs = (
        MultiTaskSAC.load(folder / f"{SET}.zip").get_parameters()["policy"]
        for folder in (run, run_of(tmp_path / "whole", env=SET))
    )
    assert all(th.equal(ours[name], theirs[name]) for name in theirs)


def test_a_last_model_that_could_not_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints are there still."""
    save = MultiTaskSAC.save

    def full(model: MultiTaskSAC, path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(str(path)).name == f"{SET}.zip":
            raise FileError("No space left on device")
        save(model, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskSAC, "save", full)
        assert adapt(source, tmp_path, "--init mean") == 2
    run = run_of(tmp_path, env=SET)
    assert manifest(run)["status"] == "failed"
    assert main(f"adapt --resume {run} --vec-env dummy --verbose 0 --num-threads 1".split()) == 0
    assert manifest(run)["status"] == "finished"
    assert MultiTaskSAC.load(run / f"{SET}.zip").num_timesteps == 80


def test_without_evaluations_and_checkpoints(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``sb3-softmod train``: not one at every step; and the number of the folder is one more than the highest."""
    run_of(tmp_path, env=SET, number=4).mkdir(parents=True)
    written: list[object] = []
    monkeypatch.setattr(CheckpointFolder, "write", lambda *args, **kwargs: written.append(args))
    assert adapt(source, tmp_path, "--init mean --eval-freq -1 --save-freq 0", steps=20) == 0
    run = run_of(tmp_path, env=SET, number=5)
    assert manifest(run)["status"] == "finished"
    assert not written
    assert not list(run.glob("evaluations.*"))
    assert not (run / "best_model.zip").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tune modules", "--tune.*modules"),
        ("--init best", "--init.*best"),
        ("--pretrained MT10", "name either a run, or --pretrained NAME, or --resume RUN"),
    ],
)
def test_bad_input(
    source: Path, tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(source, tmp_path, options) == 2
    text = capsys.readouterr().err
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir())


def test_bad_tasks(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tasks, message in (("reach-v3", "reach-v3"), ("coffee-buton-v3", "did you mean 'coffee-button-v3'")):
        assert main(f"adapt {source} --tasks {tasks} -n 10 -f {tmp_path}".split()) == 2
        assert message in capsys.readouterr().err
    assert main(f"adapt {source} -n 10".split()) == 2
    assert "--tasks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
