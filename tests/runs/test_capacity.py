"""Success beside the size of the network, from run folders."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from sb3_softmod import ConfigurationError
from sb3_softmod.cli import main
from sb3_softmod.runs.capacity import capacity_table
from sb3_softmod.runs.results import results_table
from sb3_softmod.runs.run import find_runs


def parameters(actor: int, critic: int) -> dict[str, int]:
    return dict(actor=actor, critic=critic, policy=actor + 2 * critic)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    deep: dict[str, Any] = dict(parameters=parameters(1000, 2000), network=dict(preset="deep"))
    write_run(tmp_path, "softmod_deep", 1, {2000: [0.5, 1.0]}, **deep)
    write_run(tmp_path, "softmod_deep", 2, {2000: [0.25, 0.75]}, **deep)
    wide: dict[str, Any] = dict(parameters=parameters(2000, 5500), network=dict(net_arch=[400, 400]))
    write_run(tmp_path, "mt_sac", 1, {2000: [0.5, 0.25]}, **wide)
    small: dict[str, Any] = dict(parameters=parameters(300, 300), network=dict(net_arch=[64]))
    write_run(tmp_path, "mt_sac", 1, {2000: [0.0, 0.5]}, suffix="-small", **small)
    write_run(tmp_path, "mt_mh_sac", 1, {1000: [0.2, 0.4]}, status="running")
    return tmp_path


def test_markdown(logs: Path) -> None:
    assert capacity_table(find_runs(logs)[0], "MT10-Fixed").splitlines() == [
        "| Method | MT10-Fixed | parameters | relative to Ours (Deep) | network |",
        "| --- | --- | --- | --- | --- |",
        "| Ours (Deep) | 62.5 % (2 seeds of 5 episodes a task, too few for a spread) | 3,000 | 1.00x | preset deep |",
        "| MT-SAC | 25.0 % (1 seed of 5 episodes a task, too few for a spread) | 600 | 0.20x | net_arch [64] |",
        "| MT-SAC | 37.5 % (1 seed of 5 episodes a task, too few for a spread) | 7,500 | 2.50x | net_arch [400, 400] |",
        "| MT-MH-SAC | not finished: 1,000 of 2,000 steps | – | – | – |",  # noqa: RUF001
    ]


def test_latex(logs: Path) -> None:
    lines = capacity_table(find_runs(logs)[0], "MT10-Fixed", "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lcccc}"
    assert lines[5] == (
        r"MT-SAC & 25.0 \% (1 seed of 5 episodes a task, too few for a spread) & 600 & 0.20x & net\_arch [64] \\"
    )


def test_csv(logs: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(capacity_table(find_runs(logs)[0], "MT10-Fixed", "csv"))))
    assert [(row["method"], row["parameters"], row["relative"], row["mean"]) for row in rows] == [
        ("softmod_deep", "3000", "1.00", "0.625"),
        ("mt_sac", "600", "0.20", "0.25"),
        ("mt_sac", "7500", "2.50", "0.375"),
        ("mt_mh_sac", "", "", ""),
    ]


def test_networks_of_other_sizes_are_not_mixed_in_the_results(logs: Path) -> None:
    (row,) = [line for line in results_table(find_runs(logs)[0]).splitlines() if line.startswith("| MT-SAC")]
    assert row == (
        "| MT-SAC | 600 parameters: 25.0 % (1 seed of 5 episodes a task, too few for a spread)<br>"
        "7,500 parameters: 37.5 % (1 seed of 5 episodes a task, too few for a spread) |"
    )


def test_what_is_refused(logs: Path) -> None:
    runs = find_runs(logs)[0]
    with pytest.raises(ConfigurationError, match="No run on MT3; there are runs on MT10-Fixed"):
        capacity_table(runs, "MT3")
    with pytest.raises(ConfigurationError, match="Unknown format 'latx': did you mean 'latex'"):
        capacity_table(runs, "MT10-Fixed", "latx")  # type: ignore[arg-type]


def test_the_command(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "capacity", str(logs), "--env", "MT10-Fixed"]) == 0
    assert "| MT-SAC | 25.0 % (1 seed" in capsys.readouterr().out
