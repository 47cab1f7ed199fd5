"""Names of tasks in log files: what would break a file is refused (bad_loading.py), every other name is read back."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from point_mass import PointMass
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_softmod import MultiTaskSAC, make_multitask_env
from sb3_softmod.evaluation import MultiTaskEvalCallback, TaskEvaluation, evaluate_tasks
from sb3_softmod.routing.snapshots import RoutingSnapshotCallback, RoutingSnapshots
from sb3_softmod.runs.progress import ProgressFileCallback, read_progress

NAMES = ["Meta-World/reach-v3", "it's near; or 50 % far", "größe → 1", "<b>$x_1$</b>\\n", "#a=b:c|d", "time"]


def test_every_file_has_the_names(tmp_path: Path) -> None:
    makers = {name: partial(PointMass, task) for task, name in enumerate(NAMES)}
    env, other = (make_multitask_env(makers, n_workers=0, max_episode_steps=5) for _ in range(2))
    M = len(NAMES)
    kwargs = dict(embedding_dim=4, module_dim=4, num_layers=2, num_modules=2)
    model = MultiTaskSAC("SoftModPolicy", env, batch_size=M, learning_starts=M, buffer_size=600, policy_kwargs=kwargs)
    model.set_logger(configure(str(tmp_path / "log"), ["csv", "json", "tensorboard"]))
    evaluation = MultiTaskEvalCallback(other, n_eval_episodes=1, eval_freq=5, log_path=str(tmp_path), verbose=0)
    callbacks = [evaluation, ProgressFileCallback(tmp_path), RoutingSnapshotCallback(tmp_path / "routing.npz", M * 5)]
    model.learn(20 * M, callbacks)

    keys = [f"ent_coef/{name}" for name in NAMES]
    for path in (tmp_path / "log" / "progress.csv", tmp_path / "progress.csv"):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert set(keys) <= set(header)
        assert {len(row) for row in rows} == {len(header)}
    steps, values = read_progress(tmp_path, ["ent_coef"], NAMES)["ent_coef"]
    assert steps[-1] == 20 * M
    logged = [json.loads(line) for line in (tmp_path / "log" / "progress.json").read_text().splitlines()]
    last = [entry for entry in logged if keys[0] in entry][-1]
    np.testing.assert_allclose(values[-1], [last[key] for key in keys])
    board = EventAccumulator(str(tmp_path / "log")).Reload()
    assert set(keys) <= set(board.Tags()["scalars"])

    with (tmp_path / "evaluations.csv").open(newline="") as file:
        assert [row["task"] for row in csv.DictReader(file)] == NAMES * evaluation.num_evaluations
    assert np.load(tmp_path / "evaluations.npz")["task_names"].tolist() == NAMES
    evaluate_tasks(model, other, n_eval_episodes=1).to_json(tmp_path / "evaluation.json")
    assert TaskEvaluation.from_json(tmp_path / "evaluation.json").task_names == NAMES
    assert RoutingSnapshots.load(tmp_path / "routing.npz").task_names == NAMES
    model.save(tmp_path / "model")
    assert MultiTaskSAC.load(tmp_path / "model").task_names == NAMES


@pytest.mark.parametrize("name", ["swing, up", "a\nb"])
def test_the_error_says_what_to_do(name: str) -> None:
    with pytest.raises(ValueError, match=r"leave out commas, double quotes and line breaks, as in 'swing-up'"):
        make_multitask_env({name: partial(PointMass, 0)}, n_workers=0)
