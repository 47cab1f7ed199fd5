"""Trainings that a signal ends: with a checkpoint, or at once; what is on the disk is gone on from, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from resumable_run import After, Runs, everything, make_env, make_model, never
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from worker_envs import M

from sb3_softmod import SoftModSAC
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback

# ------------------------------------------------------------------------------ signals


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.fixture
def noted() -> Iterator[list[int]]:
    """The signals that come through to the handlers of the process."""
    before = handlers()
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    yield signals
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_training_with_a_checkpoint(
    name: str, tmp_path: Path, noted: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    number, before = signal.Signals[name], handlers()
    alone = make_model(make_env())
    alone.learn(20 * M, never())
    expected = everything(alone)
    model = make_model(make_env())
    callback = CheckpointCallback(tmp_path, save_freq=5)
    model.learn(20 * M, [callback, After(8, lambda: signal.raise_signal(number))])
    assert callback.ended_by == name
    assert not noted
    assert handlers() == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")) == [f"{15:012d}", f"{24:012d}"]
    out, errors = capfd.readouterr()
    assert f"{name}: a checkpoint after this step, then the end. Once more ends at once." in errors
    how = f"SoftModSAC.resume({str(tmp_path)!r}, env=...).learn(callback=...)"
    assert out == f"Ended by {name} at step 24. To go on: {how}\n"
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path, save_freq=5), never()])
    assert everything(resumed) == expected


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("at", [8, 20])  # in the middle, and in the last step
def test_every_callback_writes_a_checkpoint(
    name: str, at: int, tmp_path: Path, noted: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    rare, often = CheckpointCallback(tmp_path / "rare", save_freq=0), CheckpointCallback(tmp_path / "often", 5)
    model = make_model(make_env())
    model.learn(20 * M, [often, After(at, lambda: signal.raise_signal(signal.Signals[name])), CallbackList([rare])])
    assert (often.ended_by, rare.ended_by) == (name, name)
    assert not noted
    assert handlers() == before
    out, errors = capfd.readouterr()
    assert errors.count("a checkpoint after this step, then the end") == 1
    found = []
    for folder in ("often", "rare"):
        assert f"{str(tmp_path / folder)!r}" in out
        resumed = SoftModSAC.resume(tmp_path / folder, make_env())
        assert resumed.num_timesteps == at * M
        resumed.learn(callback=[CheckpointCallback(tmp_path / folder, save_freq=0), never()])
        found.append(everything(resumed))
    assert found[0] == found[1]


@pytest.mark.parametrize("callbacks", [1, 2])
def test_a_second_signal_reaches_the_handler_of_before(callbacks: int, tmp_path: Path, noted: list[int]) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        assert not noted
        signal.raise_signal(signal.SIGTERM)

    each = [CheckpointCallback(tmp_path / str(number)) for number in range(callbacks)]
    make_model(make_env()).learn(20 * M, [*each, After(8, twice)])
    assert noted == [signal.SIGTERM]


def test_a_signal_in_the_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(make_env(), overlap=True)
    callback = CheckpointCallback(tmp_path)
    model.learn(20 * M, [callback, After(20, lambda: signal.raise_signal(signal.SIGTERM))])
    expected = everything(model)
    assert callback.ended_by == "SIGTERM"
    assert "Ended by SIGTERM at step 60. To go on: " in capsys.readouterr().out
    callback.on_training_end()  # once more, as RL Zoo does with its first callback
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path), never()])
    assert resumed.num_timesteps == 60
    assert everything(resumed) == expected


def test_a_signal_before_the_first_step(tmp_path: Path) -> None:
    class AtStart(BaseCallback):
        def _on_training_start(self) -> None:
            signal.raise_signal(signal.SIGTERM)

        def _on_step(self) -> bool:
            return True

    model = make_model(make_env())
    model.learn(20 * M, [CheckpointCallback(tmp_path), AtStart()])
    assert model.num_timesteps == 0
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path), never()])
    found = everything(resumed)
    model = make_model(make_env())
    model.learn(20 * M)
    assert found == everything(model)


def test_the_handlers_are_given_back_when_a_training_fails(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    before = handlers()
    path = str(tmp_path)
    with pytest.raises(ZeroDivisionError):
        make_model(make_env()).learn(20 * M, [CheckpointCallback(path), After(3, fail)])
    assert handlers() == before
    two = [CheckpointCallback(tmp_path / name) for name in "ab"]
    make_model(make_env()).learn(2 * M, [*two])
    assert handlers() == before
    again = make_model(make_env())
    again.learn(M, CheckpointCallback(path))  # the folder is free, too


def test_ignored_signals_stay_ignored(tmp_path: Path, noted: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    callback = CheckpointCallback(tmp_path)
    model = make_model(make_env())
    model.learn(10 * M, [callback, After(4, lambda: signal.raise_signal(signal.SIGINT))])
    assert callback.ended_by is None
    assert model.num_timesteps == 10 * M
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_signal_without_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def without_stderr() -> None:
        kept = os.dup(2)
        os.close(2)
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            os.dup2(kept, 2)
            os.close(kept)

    model = make_model(make_env())
    model.learn(20 * M, [CheckpointCallback(tmp_path), After(8, without_stderr)])
    assert model.num_timesteps == 24


# ---------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    server = Runs()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.wait(runs.start(folder)) == 0, (folder / "errors").read_text()
    return folder


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def newest_step(folder: Path) -> int:
    return max(steps_on_disk(folder), default=0)


def reached(folder: Path, step: int) -> bool:
    return newest_step(folder) >= step


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(folder: Path, whole: Path) -> None:
    """A run that is finished is the one that nothing interrupted; also in what it logged, some of it twice."""
    assert pickle.loads((folder / "final.pkl").read_bytes()) == pickle.loads((whole / "final.pkl").read_bytes())
    expected, found = lines(whole / "log"), lines(folder / "log")
    assert all(line in expected for line in found)
    assert all(line in found for line in expected)


def until(condition: Callable[[], Any], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_processes(runs: Runs, whole: Path, tmp_path: Path) -> None:
    """Nothing of what was on the disk is lost, whenever SIGKILL comes."""
    rng = random.Random(0)
    for _ in range(4):
        before = newest_step(tmp_path)
        pid = runs.start(tmp_path)
        until(partial(reached, tmp_path, before + rng.choice([6, 12])))
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert runs.wait(pid) == -signal.SIGKILL
        assert lines(tmp_path / "starts")[-1] == before
    assert runs.wait(runs.start(tmp_path)) == 0, (tmp_path / "errors").read_text()
    check(tmp_path, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGTERM to the group"])
def test_ended_processes(name: str, runs: Runs, whole: Path, tmp_path: Path) -> None:
    pid = runs.start(tmp_path)
    until(lambda: steps_on_disk(tmp_path))
    number = signal.Signals[name.split()[0]]
    if "group" in name:
        os.killpg(pid, number)  # the workers too, and the server that they are forks of
    else:
        os.kill(pid, number)
    assert runs.wait(pid) == 0, (tmp_path / "errors").read_text()
    *_, last = steps_on_disk(tmp_path)
    assert (
        f"Ended by {number.name} at step {last}. To go on: SoftModSAC.resume({str(tmp_path)!r}"
        in (tmp_path / "output").read_text()
    )
    assert not (tmp_path / "final.pkl").exists()
    assert runs.wait(runs.start(tmp_path)) == 0, (tmp_path / "errors").read_text()
    assert lines(tmp_path / "starts") == [0, last]
    check(tmp_path, whole)


def test_a_second_sigterm_ends_a_process_at_once(runs: Runs, whole: Path, tmp_path: Path) -> None:
    pid = runs.start(tmp_path, pause_at=5)
    until(lambda: (tmp_path / "pausing").exists())
    os.kill(pid, signal.SIGTERM)
    until(lambda: "Once more ends at once" in (tmp_path / "errors").read_text())
    os.kill(pid, signal.SIGTERM)
    assert runs.wait(pid) == -signal.SIGTERM
    before = newest_step(tmp_path)
    assert runs.wait(runs.start(tmp_path)) == 0, (tmp_path / "errors").read_text()
    assert lines(tmp_path / "starts") == [0, before]
    check(tmp_path, whole)


def test_nohup(runs: Runs, whole: Path, tmp_path: Path) -> None:
    pid = runs.start(tmp_path, ignored=signal.SIGINT)
    until(lambda: steps_on_disk(tmp_path))
    os.kill(pid, signal.SIGINT)
    assert runs.wait(pid) == 0, (tmp_path / "errors").read_text()
    check(tmp_path, whole)
