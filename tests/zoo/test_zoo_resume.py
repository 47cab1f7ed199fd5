"""``sb3-softmod train --resume``: a run that was ended goes on as if it had not been, all of its files included."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from zoo_runs import assert_same_training, manifest, run_of, train

from sb3_softmod.cli import main
from sb3_softmod.grid.folder import is_finished
from sb3_softmod.saving.checkpoints import CheckpointFolder

STEPS = 300
RUN_OPTIONS = ("--save-freq", "45")


def ended_run(folder: Path, *, steps: int, how: str | None = None, **kwargs: Any) -> Path:
    """A run that ended after some steps; its folder."""
    folder.mkdir(exist_ok=True)
    marker = folder / "ended"
    callback = f"callback:[{{'zoo_failures.EndOnce': {{'steps': {steps}, 'marker': '{marker}', 'how': {how!r}}}}}]"
    params, options = [callback, *kwargs.pop("params", ())], (*RUN_OPTIONS, *kwargs.pop("more", ()))
    if how == "NaN":
        assert train(folder, *options, steps=STEPS, params=params, **kwargs) == 2
    elif how is None:
        with pytest.raises(ZeroDivisionError):
            train(folder, *options, steps=STEPS, params=params, **kwargs)
    else:
        assert train(folder, *options, steps=STEPS, params=params, **kwargs) == 0
    assert marker.exists()
    return run_of(folder, "softmod_deep")


def whole_run(folder: Path, **kwargs: Any) -> Path:
    """The same run, that nothing ends."""
    folder.mkdir()
    (folder / "ended").touch()
    callback = f"callback:[{{'zoo_failures.EndOnce': {{'steps': 0, 'marker': '{folder / 'ended'}'}}}}]"
    assert train(folder, *RUN_OPTIONS, steps=STEPS, params=[callback, *kwargs.pop("params", ())], **kwargs) == 0
    return run_of(folder, "softmod_deep")


def assert_same(run: Path, other: Path) -> None:
    """All but times is the same in the files of two runs."""
    assert_same_training(run, other, "MT3")
    with np.load(run / "evaluations.npz") as arrays, np.load(other / "evaluations.npz") as other_arrays:
        for key in arrays:
            np.testing.assert_array_equal(arrays[key], other_arrays[key])
    kept = ("env_steps", "env_steps_by_task", "gradient_steps", "status", "best_success_rate", "last_mean_reward")
    assert {k: manifest(run)[k] for k in kept} == {k: manifest(other)[k] for k in kept}


PARAMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "overlap": ("overlap:True", "normalize:dict(norm_reward=True)", "reward_scaling:None"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nothing ended, by their parameters."""
    th.set_num_threads(1)
    return {kind: whole_run(tmp_path_factory.mktemp(kind) / "runs", params=params) for kind, params in PARAMS.items()}


@pytest.mark.parametrize(
    ("kind", "how"), [("plain", None), ("plain", "SIGINT"), ("overlap", None), ("overlap", "SIGTERM")]
)
def test_goes_on_exactly(
    kind: str, how: str | None, whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, params = whole[kind], PARAMS[kind]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = ended_run(tmp_path, steps=200, how=how, params=params)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert manifest(run)["status"] == ("failed" if how is None else "stopped")
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("[0-9]*"))
    if how is None:
        assert checkpoints == ["000000000135", "000000000180"]
    else:
        assert checkpoints == ["000000000180", "000000000210"]  # train_freq is 5: 15 environment steps
        said = capsys.readouterr().out
        assert f"Ended by {how} at step 210. To go on: sb3-softmod train --resume {run}" in said
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, expected)
    assert [each["env_steps"] for each in manifest(run)["resumed"]] == [180 if how is None else 210]
    for each in (run, expected):
        assert not (each / "checkpoints").exists()  # a run that is finished needs none


@pytest.mark.usefixtures("worker_processes")
def test_with_worker_processes(whole: dict[str, Path], tmp_path: Path) -> None:
    expected = whole["overlap"]
    run = ended_run(tmp_path, steps=100, params=PARAMS["overlap"])
    assert main(["train", f"--resume={run}", "--vec-env=subproc", "--verbose", "0"]) == 0
    assert_same(run, expected)


def test_where_the_folder_was_moved_to(whole: dict[str, Path], tmp_path: Path) -> None:
    before = tmp_path / "before"
    run = ended_run(before, steps=200, more=("-tb", str(before / "tensorboard")))
    before.rename(tmp_path / "after")
    before.mkdir()
    (before / "ended").touch()  # by which the callback of the test knows
    moved = tmp_path / "after" / run.relative_to(before)
    assert main(["train", "--resume", str(moved)]) == 0
    assert_same(moved, whole["plain"])
    assert [path.name for path in before.iterdir()] == ["ended"]
    assert len(list((tmp_path / "after" / "tensorboard").rglob("events.*"))) == 2


def test_ended_by_a_callback(tmp_path: Path) -> None:
    """That is its end, and no pause: a grid leaves it alone."""
    callback = "callback:[{'stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes': {'max_episodes': 3}}]"
    assert train(tmp_path, *RUN_OPTIONS, steps=STEPS, params=[callback]) == 0
    run = run_of(tmp_path, "softmod_deep")
    assert manifest(run)["status"] == "ended early"
    assert manifest(run)["env_steps"] < STEPS
    assert is_finished(tmp_path)


def test_what_ends_a_training_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RL Zoo then tells its callbacks that it ended; the error stays that of the cause."""
    assert train(tmp_path, *RUN_OPTIONS, steps=STEPS, params=["env_wrapper:'zoo_failures.FailsAtReset'"]) == 2
    assert "on purpose" in capsys.readouterr().err
    assert "on purpose" in manifest(run_of(tmp_path, "softmod_deep"))["error"]


def test_numbers_that_go_wrong(whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They end the run before a checkpoint or a model has them; it goes on from the checkpoint before."""
    expected = whole["plain"]
    run = ended_run(tmp_path, steps=200, how="NaN")
    assert manifest(run)["status"] == "failed"
    (dump,) = run.glob("nonfinite-*.pt")
    error = capsys.readouterr().err
    assert re.search(rf"the loss of the critic holds NaN .* The update is in {dump}", error)
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, expected)


def test_without_checkpoints_in_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--save-freq 0 leaves the checkpoint of a signal alone."""
    marker = tmp_path / "ended"
    callback = f"callback:[{{'zoo_failures.EndOnce': {{'steps': 90, 'marker': '{marker}', 'how': 'SIGTERM'}}}}]"
    assert train(tmp_path, "--save-freq", "0", params=[callback]) == 0
    run = run_of(tmp_path, "softmod_deep")
    assert [path.name for path in (run / "checkpoints").glob("[0-9]*")] == ["000000000090"]
    # As one that is killed between its last step and its last model: its checkpoints are there still.
    said = (run / "run.json").read_text().replace('"status": "stopped"', '"status": "finished"')
    (run / "run.json").write_text(said)
    (run / "MT3.zip").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert manifest(run)["status"] == "finished"
    assert (run / "MT3.zip").exists()
    assert main(["train", "--resume", str(run)]) == 2
    assert f"{run} is finished: there is nothing to resume." in capsys.readouterr().err


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ended_run(tmp_path, steps=60)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for options, message in (
        (["--resume", str(tmp_path)], f"Cannot read {tmp_path}/run.json: No such file or directory."),
        (
            ["--resume", str(run), "--seed", "1"],
            "--resume takes no --seed: a run goes on as it began. Only -P, --progress,",
        ),
    ):
        assert main(["train", *options]) == 2
        assert f"sb3-softmod: {message}" in capsys.readouterr().err
    going_on = CheckpointFolder(run / "checkpoints", 2)  # as another process has it
    assert main(["train", "--resume", str(run)]) == 2
    assert f"writes checkpoints to {run / 'checkpoints'}: wait for its end" in capsys.readouterr().err
    going_on.close()
    assert kept == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    manifest_file = run / "checkpoints" / "000000000045" / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace('"format": 1', '"format": 7'))
    assert main(["train", "--resume", str(run)]) == 2
    assert "is of format 7, which is newer than the format 1 that this version reads" in capsys.readouterr().err
