"""Losses that are weighted by success: which episodes count, and where they come from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from point_mass import make_point_mass_env
from stable_baselines3.common.logger import configure

from sb3_softmod import ConfigurationError, MultiTaskSAC

M = 4


def make_model(**kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(
        batch_size=8 * M, learning_starts=10 * M, buffer_size=4000, policy_kwargs=dict(net_arch=[8]), seed=0
    )
    return MultiTaskSAC("MTMlpPolicy", make_point_mass_env(M), **{**options, **kwargs})


def weights(model: MultiTaskSAC, folder: Path) -> list[float]:
    """What the next gradient step weights the tasks' losses with."""
    model.dump_logs()
    model.set_logger(configure(str(folder), ["csv"]))
    model.train(1, 8 * M)
    model.dump_logs()
    with open(folder / "progress.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    return [float(row[f"loss_weight/{name}"]) for name in model.task_names]


def play(model: MultiTaskSAC, task: int, *successes: bool | None) -> None:
    """Episodes end; of None the env says nothing of success."""
    for success in successes:
        info: dict[str, Any] = {"task_id": task, "episode": {"r": 0.0, "l": 1}}
        model.episode_statistics.add([info if success is None else {**info, "is_success": success}])


def test_the_last_ten_episodes_of_each_task_count(tmp_path: Path) -> None:
    model = make_model(loss_weighting="success").learn(12 * M, log_interval=None)
    play(model, 0, *[False] * 5, *[True] * 10)
    play(model, 1, *[True] * 9, *[False, True] * 5)
    play(model, 2, *[None] * 10)
    play(model, 3, *[False] * 10)
    expected = [0.1, 0.6, 1.1, 1.1]
    assert weights(model, tmp_path / "1") == pytest.approx([M * each / sum(expected) for each in expected], rel=1e-5)
    play(model, 3, *[True] * 4)
    expected[3] = 0.7
    assert weights(model, tmp_path / "2") == pytest.approx([M * each / sum(expected) for each in expected], rel=1e-5)


def test_without_episodes_all_tasks_count_alike(tmp_path: Path) -> None:
    model = make_model(loss_weighting="success").learn(12 * M, log_interval=None)  # none has ended
    assert model.episode_statistics.num_episodes() == [0] * M
    assert weights(model, tmp_path) == pytest.approx([1.0] * M)


def test_a_file_holds_the_episodes(tmp_path: Path) -> None:
    model = make_model(loss_weighting="success").learn(12 * M, log_interval=None)
    play(model, 2, True, True, False)
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cpu")
    loaded.learn(12 * M, log_interval=None)
    assert loaded.episode_statistics.num_episodes() == [0, 0, 3, 0]
    found = weights(loaded, tmp_path / "loaded")
    play(model, 2, True)
    assert found[2] < 1 < found[0]
    assert weights(model, tmp_path / "own")[2] < found[2]


def test_it_has_no_options() -> None:
    with pytest.raises(ConfigurationError, match="loss_weighting='success' has no option 'window': it has none"):
        make_model(loss_weighting="success", loss_weighting_kwargs=dict(window=5))
