"""Runs that are not of one experiment: what tells them apart in tables and figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from sb3_softmod import ConfigurationError
from sb3_softmod.cli import main
from sb3_softmod.runs.curves import draw_curves
from sb3_softmod.runs.results import results_table
from sb3_softmod.runs.run import find_runs


def test_runs_that_began_from_a_trained_model(tmp_path: Path) -> None:
    """They are not mixed with those from scratch; of one seed each may have begun from another model."""
    write_run(tmp_path, "mt_sac", 0, {2000: [0.0, 0.5]})
    for number in (1, 2):
        origin = dict(run=f"logs/mt_sac/MT10-Fixed_{number}", model="last")
        write_run(tmp_path, "mt_sac", 0, {2000: [0.5, 1.0]}, suffix=f"-adapted-{number}", adapted_from=origin)
    origin = dict(run="logs/mt_sac/MT10-Fixed_2", model="best")
    write_run(tmp_path, "mt_sac", 0, {2000: [1.0, 1.0]}, suffix="-best", adapted_from=origin)
    write_run(tmp_path, "mt_sac", 1, {2000: [1.0, 1.0]}, continues="other.zip")
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert sorted(re.findall(r"(from [^:]*): ([0-9.]+) .*?\((\d) seed", row)) == [
        ("from a trained model", "83.3", "3"),
        ("from scratch", "25.0", "1"),
        ("from the best model of a run", "100.0", "1"),
    ]


def test_a_model_to_begin_from_counts_once_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(("logs/mt_sac/MT10-Fixed_1", str(tmp_path / "logs" / "mt_sac" / "MT10-Fixed_1"))):
        origin = dict(run=path, model="last")
        write_run(tmp_path, "mt_sac", 0, {2000: [0.5, 1.0]}, suffix=f"-{number}", adapted_from=origin)
    with pytest.raises(ConfigurationError, match="are the same seed of the same experiment"):
        results_table(find_runs(tmp_path)[0])


def test_other_tasks_of_a_set_tell_runs_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "mt_sac", 0, {2000: [0.0, 0.5]})
    folder = write_run(tmp_path, "mt_sac", 1, {2000: [1.0, 1.0]}, tasks=["push", "slide"])
    (folder / "evaluations.csv").write_text((folder / "evaluations.csv").read_text().replace("pull", "slide"))
    runs, _ = find_runs(tmp_path)
    *_, row = results_table(runs).splitlines()
    assert "tasks push, pull: 25.0 %" in row
    assert "tasks push, slide: 100.0 %" in row
    with pytest.raises(ConfigurationError, match="The runs on MT10-Fixed are of different tasks"):
        draw_curves(runs, "MT10-Fixed", by_task=True)
    write_run(tmp_path, "mt_sac", 0, {2000: [0.0, 0.5]}, benchmark="MT3")
    for figure in (["profiles"], ["curves", "--by-task"]):
        assert main(["plot", *figure, str(tmp_path), "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr()
        assert "left out: The runs on MT10-Fixed are of different tasks" in said.err
        assert "-MT3" in said.out


def test_how_long_a_source_learned_tells_runs_apart(tmp_path: Path) -> None:
    for seed, budget in enumerate(("1,000,000 steps", "30 minutes")):
        source = dict(budget=budget, n_timesteps=seed, precision="bf16" if seed else "fp32")
        told: dict[str, Any] = dict(
            hyperparams=dict(source=dict(**source, source=source)), adapted_from=dict(run="logs/x")
        )
        write_run(tmp_path, "mt_sac", seed, {2000: [seed / 2, 1.0]}, **told)
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert "the source's budget 1,000,000 steps" in row
    assert "the source's budget 30 minutes" in row
    assert "n_timesteps" not in row
    assert "precision" not in row


def test_evaluations_in_other_envs_are_not_mixed(tmp_path: Path) -> None:
    told: dict[str, Any] = dict(hyperparams=dict(gamma=0.9))
    write_run(tmp_path, "mt_sac", 0, {2000: [0.0, 0.5]}, **told)
    write_run(tmp_path, "mt_sac", 1, {2000: [1.0, 1.0]}, **told, eval_env_kwargs=dict(goals="random"))
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert "eval_env_kwargs by default: 25.0 %" in row
    assert "eval_env_kwargs {'goals': 'random'}: 100.0 %" in row
