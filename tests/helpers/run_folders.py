"""Run folders as training leaves them, made by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TASKS = ["push", "pull"]


def write_run(
    logs: Path,
    method: str,
    seed: int,
    evaluations: Mapping[int, Sequence[float]],
    *,
    status: str = "finished",
    benchmark: str = "MT10-Fixed",
    **manifest: Any,
) -> Path:
    """Write one.

    :param evaluations: environment steps to success rates of the tasks
    :param manifest: further keys of ``run.json``
    :return: the folder
    """
    folder = logs / method / f"{benchmark}_{seed}{manifest.get('suffix', '')}"
    folder.mkdir(parents=True)
    content: dict[str, Any] = dict(
        status=status,
        method=method,
        task_set=benchmark,
        tasks=TASKS,
        seed=seed,
        planned_env_steps=2000,
        horizon=200,
        goals="fixed",
        reward_version="v2",
    )
    (folder / "run.json").write_text(json.dumps({**content, **manifest}))
    with (folder / "evaluations.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["timesteps", "task", "episodes", "success_rate", "success_at_end_rate", "mean_return", "length"]
        )
        for steps, success in evaluations.items():
            for task, rate in zip(TASKS, success, strict=True):
                table.writerow([steps, task, 5, rate, rate, 100 * rate, 200])
    return folder
