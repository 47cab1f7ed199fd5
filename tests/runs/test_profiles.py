"""Methods compared over seeds: performance profiles and probabilities of improvement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run

from sb3_softmod import ConfigurationError
from sb3_softmod.cli import main
from sb3_softmod.runs.profiles import THRESHOLDS, draw_profiles, finished_entries, improvements
from sb3_softmod.runs.run import find_runs


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write_run(tmp_path, "softmod_deep", 1, {2000: [0.5, 1.0]})
    write_run(tmp_path, "softmod_deep", 2, {2000: [0.75, 1.0]})
    write_run(tmp_path, "mt_sac", 1, {2000: [0.5, 0.25]})
    write_run(tmp_path, "mt_sac", 2, {2000: [0.0, 0.25]})
    write_run(tmp_path, "mt_mh_sac", 1, {1000: [0.2, 0.4]}, status="running")
    return tmp_path


def test_probabilities_of_improvement(logs: Path) -> None:
    (pair,) = improvements(finished_entries(find_runs(logs)[0], "MT10-Fixed"))
    assert (pair.first, pair.second) == ("Ours (Deep)", "MT-SAC")
    # First task: 0.5 and 0.75 against 0.5 and 0, one tie among four; second task: always.
    assert pair.probability == pytest.approx((3.5 / 4 + 1) / 2)
    assert pair.interval is None
    for method, success in (("softmod_deep", [0.5, 1.0]), ("mt_sac", [0.5, 1.0])):
        write_run(logs, method, 3, {2000: success})
    (pair,) = improvements(finished_entries(find_runs(logs)[0], "MT10-Fixed"))
    assert pair.interval is not None
    assert pair.interval[0] <= pair.probability <= pair.interval[1]


def test_the_drawing(logs: Path) -> None:
    figure = draw_profiles(find_runs(logs)[0], "MT10-Fixed")
    left, right = figure.axes
    labels = [line.get_label() for line in left.lines]
    assert labels == [
        "Ours (Deep) (2 seeds of 5 episodes a task; too few for an interval)",
        "MT-SAC (2 seeds of 5 episodes a task; too few for an interval)",
    ]
    assert left.get_title() == "MT10-Fixed (fixed goals)"
    assert not left.collections
    runs = np.array([0.5, 1.0, 0.75, 1.0])
    expected = [100 * (runs > threshold).mean() for threshold in THRESHOLDS]
    np.testing.assert_allclose(left.lines[0].get_ydata(), expected)  # type: ignore[arg-type]
    assert [label.get_text() for label in right.get_yticklabels()] == ["Ours (Deep) > MT-SAC"]
    assert right.lines[0].get_xdata() == [pytest.approx(3.75 / 4)]


def test_other_budgets_stand_apart(logs: Path) -> None:
    write_run(logs, "mt_sac", 1, {4000: [1.0, 1.0]}, planned_env_steps=4000, suffix="-long")
    assert list(finished_entries(find_runs(logs)[0], "MT10-Fixed")) == [
        "Ours (Deep), 2,000 steps",
        "MT-SAC, 2,000 steps",
        "MT-SAC, 4,000 steps",
    ]


def test_one_method_alone_has_no_improvement(tmp_path: Path) -> None:
    write_run(tmp_path, "mt_sac", 1, {2000: [0.5, 0.25]})
    assert len(draw_profiles(find_runs(tmp_path)[0], "MT10-Fixed").axes) == 1


def test_long_names_are_wrapped(tmp_path: Path) -> None:
    for setting in range(4):
        hyperparams = {f"an_option_with_a_long_name_{k}": setting for k in range(8)}
        write_run(tmp_path, "mt_sac", 1, {2000: [0.5, 0.25]}, suffix=f"-{setting}", hyperparams=hyperparams)
    figure = draw_profiles(find_runs(tmp_path)[0], "MT10-Fixed")
    figure.savefig(tmp_path / "profiles.png")  # without a warning that there is no room for the axes
    texts = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(texts) == 6
    assert max(len(line) for text in texts for line in text.splitlines()) <= 48


def test_an_unknown_benchmark_is_refused(logs: Path) -> None:
    with pytest.raises(ConfigurationError, match="No finished run on MT3 reports success; there are such runs on MT10"):
        finished_entries(find_runs(logs)[0], "MT3")


def test_the_command(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "profiles", str(logs), "--out", str(logs / "figures")]) == 0
    written, png, found = capsys.readouterr().out.splitlines()
    assert [Path(written).name, Path(png).name] == ["profiles-MT10-Fixed.svg", "profiles-MT10-Fixed.png"]
    assert Path(png).stat().st_size > 5000
    assert found == "P(Ours (Deep) > MT-SAC) = 0.94 (too few for an interval; 2 and 2 seeds)"


def test_the_command_without_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "mt_mh_sac", 1, {1000: [0.2, 0.4]}, status="running")
    assert main(["plot", "profiles", str(tmp_path)]) == 2
    assert f"No run in {tmp_path} is finished and reports success." in capsys.readouterr().err
