"""Models after so many minutes of training: when they are saved, what ends then, and what the clock counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from point_mass import make_point_mass_env
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_softmod import CheckpointCallback, ConfigurationError, MultiTaskSAC, TimedSnapshots
from sb3_softmod.common.csv_files import last_rows
from sb3_softmod.evaluation import MultiTaskEvalCallback
from sb3_softmod.saving import timed_snapshots

M = 3
SMALL: dict[str, Any] = dict(batch_size=2 * M, learning_starts=2 * M, buffer_size=300, seed=0, device="cpu")


def make_model(**kwargs: Any) -> MultiTaskSAC:
    return MultiTaskSAC("MTMlpPolicy", make_point_mass_env(M), policy_kwargs=dict(net_arch=[4]), **{**SMALL, **kwargs})


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Tick(BaseCallback):
    """Lets seconds pass in each step, and some more in an evaluation."""

    def __init__(self, clock: Clock, seconds: float, evaluating: float = 0.0) -> None:
        super().__init__()
        self.clock, self.seconds, self.evaluating = clock, seconds, evaluating
        self.seconds_of_evaluation = 0.0

    def _on_step(self) -> bool:
        self.clock.now += self.seconds + self.evaluating
        self.seconds_of_evaluation += self.evaluating
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timed_snapshots, "time", clock)
    return clock


def test_marks(clock: Clock, tmp_path: Path) -> None:
    """Steps of 10 seconds and evaluations of 100: only the former count, and the last mark ends the training."""
    snapshots = TimedSnapshots(tmp_path, [1.5, 0.5])
    model = make_model().learn(10**9, [Tick(clock, 10, evaluating=100), snapshots])
    assert model.num_timesteps == 9 * M
    expected = [
        {"minutes": 0.5, "seconds": 30.0, "env_steps": 3 * M, "gradient_steps": 0},
        {"minutes": 1.5, "seconds": 90.0, "env_steps": 9 * M, "gradient_steps": 6},
    ]
    assert json.loads((tmp_path / "snapshots.json").read_text()) == snapshots.snapshots == expected
    assert snapshots.finished
    for name, steps in (("model_0.5min.zip", 3 * M), ("model_1.5min.zip", 9 * M)):
        assert MultiTaskSAC.load(tmp_path / name).num_timesteps == steps
    assert not list(tmp_path.glob("*.tmp"))


def test_log(clock: Clock, tmp_path: Path) -> None:
    """It says the seconds that count."""
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callbacks = [Tick(clock, 10, evaluating=100), TimedSnapshots(tmp_path, [5])]
    model.learn(10**9, callbacks, log_interval=1)
    row, *_ = last_rows(tmp_path / "progress.csv")
    assert (row["time/total_timesteps"], row["time/training_seconds"]) == (str(20 * M), "200.0")


def test_marks_within_one_step(clock: Clock, tmp_path: Path) -> None:
    model = make_model().learn(10**9, [Tick(clock, 100), TimedSnapshots(tmp_path, [1, 1.5, 3])])
    assert model.num_timesteps == 2 * M
    assert [each["env_steps"] for each in json.loads((tmp_path / "snapshots.json").read_text())] == [M, M, 2 * M]


def test_the_steps_end_it_before(clock: Clock, tmp_path: Path) -> None:
    snapshots = TimedSnapshots(tmp_path, [1, 60])
    make_model().learn(10 * M, [Tick(clock, 10), snapshots])
    assert [each["minutes"] for each in snapshots.snapshots] == [1]
    assert not snapshots.finished
    assert snapshots.seconds() == 100


def test_resumed(clock: Clock, tmp_path: Path) -> None:
    """The break does not count, nor what was lost with it; a mark that was lost is saved anew."""

    def callbacks(seconds: float) -> list[BaseCallback]:
        checkpoints = CheckpointCallback(tmp_path, save_freq=4)
        return [checkpoints, Tick(clock, seconds, evaluating=7), TimedSnapshots(tmp_path, [1, 1.5])]

    make_model().learn(6 * M, callbacks(10))  # 60 seconds; the checkpoint is of 40
    assert (tmp_path / "model_1min.zip").exists()
    clock.now += 10_000
    resumed = MultiTaskSAC.resume(tmp_path, make_point_mass_env(M), device="cpu")
    resumed._total_timesteps = 10**9
    again = callbacks(5)
    resumed.learn(callback=again)
    assert resumed.num_timesteps == 14 * M
    assert json.loads((tmp_path / "snapshots.json").read_text()) == [
        {"minutes": 1, "seconds": 60.0, "env_steps": 8 * M, "gradient_steps": 5},
        {"minutes": 1.5, "seconds": 90.0, "env_steps": 14 * M, "gradient_steps": 11},
    ]
    assert MultiTaskSAC.load(tmp_path / "model_1min.zip").num_timesteps == 8 * M


@pytest.mark.parametrize("marks", [[1, 2, 3], [3], [0.5, 3]])
def test_resumed_for_other_minutes(marks: list[float], clock: Clock, tmp_path: Path) -> None:
    first = [CheckpointCallback(tmp_path, save_freq=8), Tick(clock, 10), TimedSnapshots(tmp_path, [1, 2])]
    make_model().learn(9 * M, first)  # 90 seconds; the checkpoint is of 80
    resumed = MultiTaskSAC.resume(tmp_path, make_point_mass_env(M), device="cpu")
    resumed._total_timesteps = 10**9
    resumed.learn(callback=[Tick(clock, 10), TimedSnapshots(tmp_path, marks)])
    assert resumed.num_timesteps == 18 * M  # three minutes
    found = {each["minutes"]: each["seconds"] for each in json.loads((tmp_path / "snapshots.json").read_text())}
    assert found == {1: 60, **{mark: 60 * mark for mark in marks if mark != 0.5}}  # which is past


def test_evaluations_say_how_long_they_took(tmp_path: Path) -> None:
    evaluation = MultiTaskEvalCallback(make_point_mass_env(M), n_eval_episodes=1, eval_freq=5, verbose=0)
    make_model().learn(4 * M, evaluation)
    assert evaluation.seconds_of_evaluation == 0
    make_model().learn(5 * M, evaluation)
    assert 0 < evaluation.seconds_of_evaluation < 60


@pytest.mark.parametrize(
    ("minutes", "message"),
    [
        ([], "minutes must be one or more numbers, not \\[\\]"),
        ("15", "minutes must be one or more numbers, not '15'"),
        ([0], "minutes must be positive, not 0"),
        ([15, float("inf")], "minutes must be a finite number, not inf"),
        ([15, 15.0], "minutes must differ: two of 15, 15 are equal"),
    ],
)
def test_refused(minutes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TimedSnapshots(tmp_path, minutes)


def test_refused_when_learning_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot have a schedule of the learning rate"):
        make_model(learning_rate=lambda left: 1e-3 * left).learn(M, TimedSnapshots(tmp_path, [1]))
    with pytest.raises(ConfigurationError, match="TimedSnapshots is for SoftModSAC and MultiTaskSAC, not SAC"):
        SAC("MlpPolicy", "Pendulum-v1").learn(1, TimedSnapshots(tmp_path, [1]))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Cannot make the folder"):
        make_model().learn(M, TimedSnapshots(tmp_path / "file", [1]))
