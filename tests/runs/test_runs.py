"""Run folders, statistics over seeds, tables and curves."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import TASKS, write_run

from sb3_softmod import ConfigurationError
from sb3_softmod.evaluation.result import TaskEvaluation, percent
from sb3_softmod.runs.capacity import capacity_table
from sb3_softmod.runs.curves import collect_curves, draw_curves
from sb3_softmod.runs.evaluation import env_options, load_model
from sb3_softmod.runs.results import results_table
from sb3_softmod.runs.run import find_runs, load_run
from sb3_softmod.runs.statistics import (
    aggregate,
    mean_and_interval,
    performance_profiles,
    probability_of_improvement,
)

# ----------------------------------------------------------------------------------- folders


def test_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "softmod_deep", 3, {1000: [0.2, 0.4], 2000: [0.6, 1.0]})
    run = load_run(folder)
    assert (run.method, run.title, run.benchmark, run.task_names) == (
        "softmod_deep",
        "Ours (Deep)",
        "MT10-Fixed",
        TASKS,
    )
    assert (run.steps, run.planned_steps, run.finished, run.episodes) == (2000, 2000, True, 5)
    assert run.timesteps.tolist() == [1000, 2000]
    assert run.success.tolist() == [[0.2, 0.4], [0.6, 1.0]]
    assert run.returns.tolist() == [[20, 40], [60, 100]]
    assert run.final is not None
    assert run.final.success.tolist() == [0.6, 1.0]


def evaluate(folder: Path, success: Sequence[float], episodes: int = 50, **settings: Any) -> None:
    """As ``sb3-softmod evaluate`` does."""
    n = len(success)
    found = TaskEvaluation(TASKS, [episodes] * n, list(success), [0.0] * n, [1.0] * n, [5.0] * n, settings)
    found.to_json(folder / "evaluation.json")


def test_the_final_evaluation_comes_before_those_of_training(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {2000: [0.6, 1.0]})
    evaluate(folder, [0.5, math.nan], 40)
    final = load_run(folder).final
    assert final is not None
    assert final.episodes == 40
    assert final.success[0] == 0.5
    assert math.isnan(final.success[1])


def test_an_evaluation_from_before_a_run_went_on_is_void(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {2000: [0.6, 1.0]}, env_steps=2000)
    for at in ([1000, 0], [None, 0], [2000, 1], [2000, 0]):  # None: of a run that was killed
        evaluate(folder, [0.0, 0.5], state_of_run=at)
        final = load_run(folder).final
        assert final is not None
        assert final.success.tolist() == ([0.0, 0.5] if at == [2000, 0] else [0.6, 1.0])


def test_a_run_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4], 2000: [0.6, 1.0]}, status="running")
    path = folder / "evaluations.csv"
    text = path.read_text()
    for end in (len(text) - 3, text.index("2000,pull"), text.index("2000,pull") + 7):
        path.write_text(text[:end])
        run = load_run(folder)
        assert run.steps == 1000
        assert run.success.tolist() == [[0.2, 0.4]]
        assert not run.finished


def test_folders_that_cannot_be_read_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = write_run(tmp_path, "mt_sac", 1, {2000: [0.6, 1.0]})
    broken = write_run(tmp_path, "mt_sac", 2, {2000: [0.6, 1.0]})
    (broken / "run.json").write_text('{"status": "fini')
    lacking = write_run(tmp_path, "mt_sac", 3, {2000: [0.6, 1.0]})
    (lacking / "run.json").write_text(json.dumps(dict(status="finished", method="mt_sac")))
    empty = write_run(tmp_path, "mt_sac", 4, {})
    bad_final = write_run(tmp_path, "mt_sac", 5, {2000: [0.6, 1.0]})
    (bad_final / "evaluation.json").write_text('{"tasks": {}}')
    foreign = tmp_path / "sac" / "Pendulum-v1_1"
    foreign.mkdir(parents=True)
    np.savez(foreign / "evaluations.npz", timesteps=[1])
    (tmp_path / "notes").mkdir()
    runs, problems = find_runs(tmp_path)
    assert [run.folder for run in runs] == [good]
    for folder, message in (
        (broken, "is broken"),
        (lacking, "lacks task_set, tasks, seed, planned_env_steps"),
        (empty, "holds no whole evaluation of 2 tasks"),
        (bad_final, "evaluation.json is broken"),
        (foreign, "is no run of sb3-softmod train: it holds no run.json"),
    ):
        assert sum(str(folder) in problem and message in problem for problem in problems) == 1, folder
    assert len(problems) == 5


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no folder"):
        find_runs(tmp_path / "logs")
    with pytest.raises(ConfigurationError, match=r"No run of sb3-softmod train in"):
        find_runs(tmp_path)


# -------------------------------------------------------------------------------- statistics

SCORES = np.array([[0.0, 0.5, 1.0, 0.25], [0.5, 0.75, 1.0, 0.0], [0.25, 1.0, 1.0, 0.5]])


def test_aggregate_is_the_direct_computation() -> None:
    found = aggregate(SCORES)
    assert found.mean == pytest.approx(SCORES.mean())
    assert found.std == pytest.approx(np.std([0.4375, 0.5625, 0.6875]))
    assert found.iqm == pytest.approx(np.sort(SCORES, axis=None)[3:9].mean())  # 12 runs: the middle six
    assert found.seeds == 3
    # The stratified bootstrap: of each task, three runs drawn with replacement.
    rng = np.random.default_rng(0)
    drawn = SCORES[rng.integers(3, size=(20_000, 3, 4)), np.arange(4)]
    iqms = np.sort(drawn.reshape(len(drawn), -1), axis=1)[:, 3:9].mean(1)
    assert found.iqm_interval is not None
    np.testing.assert_allclose(found.iqm_interval, np.percentile(iqms, [2.5, 97.5]), atol=0.03)


def test_intervals_are_the_same_each_time_and_leave_the_global_generator_alone() -> None:
    thresholds = np.array([0.25, 0.5])
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        profile, interval = performance_profiles({"a": SCORES}, thresholds)["a"]
        improvement = probability_of_improvement(SCORES, SCORES[:, ::-1])
        found.append((aggregate(SCORES), profile.tolist(), interval.tolist(), improvement))
        assert np.random.rand() == np.random.RandomState(seed).rand()
    assert found[0] == found[1]


def test_one_and_two_seeds_have_no_interval_and_unreported_tasks_do_not_count() -> None:
    found = aggregate(np.array([[0.5, np.nan, 1.0]]))
    assert (found.mean, found.std, found.iqm_interval, found.seeds) == (0.75, None, None, 1)
    two = aggregate(SCORES[:2])
    assert (two.mean, two.std, two.iqm_interval) == (0.5, None, None)
    assert mean_and_interval(SCORES[:2])[1] is None
    with pytest.raises(ConfigurationError, match="no score"):
        aggregate(np.array([[np.nan]]))


def test_performance_profiles() -> None:
    thresholds = np.array([-0.1, 0.25, 0.5, 1.0])
    profile, interval = performance_profiles({"a": SCORES, "b": SCORES / 2}, thresholds)["a"]
    np.testing.assert_allclose(profile, [(threshold < SCORES).mean() for threshold in thresholds])
    assert interval.shape == (2, 4)
    assert (interval[0] <= profile + 1e-9).all()
    assert (interval[1] >= profile - 1e-9).all()


def test_probability_of_improvement() -> None:
    other = np.array([[0.1, 0.5, 0.9, 0.5], [0.3, 0.5, 1.0, 0.25]])
    wins = [(x > y) + 0.5 * (x == y) for x, y in ((SCORES[i], other[j]) for i in range(3) for j in range(2))]
    assert probability_of_improvement(SCORES, other) == (pytest.approx(np.mean(wins)), None)  # of two seeds
    probability, interval = probability_of_improvement(SCORES, SCORES[:, ::-1])
    assert interval is not None
    assert interval[0] <= probability <= interval[1]
    with pytest.raises(ConfigurationError, match="of 4 and of 3 tasks"):
        probability_of_improvement(SCORES, other[:, :3])


# ------------------------------------------------------------------------------------ tables


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write_run(tmp_path, "softmod_deep", 1, {1000: [0.1, 0.1], 2000: [0.5, 1.0]})
    write_run(tmp_path, "softmod_deep", 2, {2000: [0.25, 0.75]})
    write_run(tmp_path, "softmod_deep", 3, {2000: [0.75, 0.75]})
    write_run(tmp_path, "mt_mh_sac", 1, {1000: [0.2, 0.4]}, status="running", benchmark="MT50-Fixed")
    write_run(tmp_path, "softmod_shallow_wo_obs_balance", 1, {2000: [0.0, 1.0]})
    write_run(tmp_path, "softmod_shallow_wo_obs_balance", 1, {4000: [1.0, 1.0]}, planned_env_steps=4000, suffix="-long")
    return tmp_path


def test_markdown(logs: Path) -> None:
    assert results_table(find_runs(logs)[0]).splitlines() == [
        "| Method | MT10-Fixed | MT50-Fixed |",
        "| --- | --- | --- |",
        "| Ours (Deep) | 66.7 ± 11.8 % (3 seeds of 5 episodes a task; IQM 68.8, 56.2 to 81.2) | – |",  # noqa: RUF001
        "| Ours (Shallow, w/o Obs & Balance) | 2,000 steps: 50.0 % (1 seed of 5 episodes a task, too few for a spread)"
        "<br>4,000 steps: 100.0 % (1 seed of 5 episodes a task, too few for a spread) | – |",  # noqa: RUF001
        "| MT-MH-SAC | – | not finished: 1,000 of 2,000 steps |",  # noqa: RUF001
    ]


def test_latex(logs: Path) -> None:
    lines = results_table(find_runs(logs)[0], "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lcc}"
    assert lines[2] == r"Method & MT10-Fixed & MT50-Fixed \\"
    deep = r"Ours (Deep) & 66.7 $\pm$ 11.8 \% (3 seeds of 5 episodes a task; IQM 68.8, 56.2 to 81.2) & -- \\"
    assert lines[4] == deep
    assert lines[5].startswith(r"Ours (Shallow, w/o Obs \& Balance) & \shortstack{2,000 steps: 50.0 \% (1 seed of")
    assert lines[-1] == r"\end{tabular}"


def test_csv(logs: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(results_table(find_runs(logs)[0], "csv"))))
    assert [(row["method"], row["planned_env_steps"], row["seeds"]) for row in rows] == [
        ("softmod_deep", "2000", "3"),
        ("softmod_shallow_wo_obs_balance", "2000", "1"),
        ("softmod_shallow_wo_obs_balance", "4000", "1"),
        ("mt_mh_sac", "2000", "0"),
    ]
    assert float(rows[0]["mean"]) == pytest.approx(2 / 3)
    assert float(rows[0]["std"]) > 0.1
    assert [rows[1][name] for name in ("mean", "std", "iqm_low", "iqm_high")] == ["0.5", "", "", ""]
    assert (rows[0]["horizon"], rows[0]["goals"], rows[0]["episodes_a_task"]) == ("200", "fixed", "5")
    assert (rows[3]["mean"], rows[3]["unfinished_at"]) == ("", "1000")


def test_the_same_seed_twice_is_refused(logs: Path) -> None:
    write_run(logs, "softmod_deep", 2, {2000: [0.25, 0.75]}, suffix="-again")
    with pytest.raises(ConfigurationError, match=r"MT10-Fixed_2 and .*MT10-Fixed_2-again are the same seed"):
        results_table(find_runs(logs)[0])


def test_scores_that_were_found_in_different_ways_are_not_mixed(tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [dict(protocol="metaworld"), dict(protocol="metaworld"), dict(model="best")]
    for seed, settings in enumerate(ways):
        folder = write_run(tmp_path, "mt_sac", seed, {2000: [0.0, 0.0]})
        evaluate(folder, [0.5, 1.0], seed=seed, **settings)
    evaluate(write_run(tmp_path, "mt_sac", 3, {2000: [0.0, 0.0]}), [0.5, 1.0], seed=7)
    write_run(tmp_path, "mt_sac", 4, {2000: [1.0, 1.0]})
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert re.findall(r"(?:<br>|\| )([^|<]*?): ([0-9.]+ %) \((\d) seed", row) == [
        ("metaworld protocol", "75.0 %", "2"),
        ("evaluated after training, the best model", "75.0 %", "1"),
        ("evaluated after training, goals of seed 7", "75.0 %", "1"),
        ("evaluated during training", "100.0 %", "1"),
    ]


def test_runs_of_other_hyperparameters_are_not_mixed(tmp_path: Path) -> None:
    """As the blocks of a grid have them; what changes nothing but rounding does not count."""
    for name, rate, clip, precision in (("slow", 1e-4, None, "fp32"), ("fast", 1e-3, 1.0, "bf16")):
        for seed in (1, 2):
            hyperparams: dict[str, Any] = dict(learning_rate=rate, precision=precision, env_kwargs=dict(seed=seed))
            hyperparams["policy_kwargs"] = dict(net_arch=[64], **({} if clip is None else dict(depth=3)))
            success = {0: [0.0, 0.0], 2000: [rate, rate]}
            write_run(tmp_path, "mt_sac", seed, success, suffix=name, hyperparams=hyperparams)
    runs = find_runs(tmp_path)[0]
    ways = ["learning_rate 0.0001, depth by default", "learning_rate 0.001, depth 3"]
    labels = [curve.label for curve in collect_curves(runs, "MT10-Fixed")]
    few = "MT-SAC (2 seeds of 5 episodes a task, no interval"
    assert labels == [f"{few}, {way}" + ")" for way in ways]
    *_, row = results_table(runs).splitlines()
    assert re.findall(r"(?:\| |<br>)(learning[^:]*): ", row) == ways
    assert all(f"{way}: " in results_table(runs, "latex") for way in (way.replace("_", r"\_") for way in ways))
    assert [row["different"] for row in csv.DictReader(io.StringIO(results_table(runs, "csv")))] == ways
    assert [line.split(" | ")[0] for line in capacity_table(runs, "MT10-Fixed").splitlines()[2:]] == [
        f"| MT-SAC, {way}" for way in ways
    ]
    write_run(tmp_path, "mt_sac", 3, {2000: [0.5, 1.0]})  # of an earlier version
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert "hyperparameters unknown: 75.0 %" in row
    assert "hyperparameters known, learning_rate 0.001, depth 3: " in row


def test_a_finished_run_that_was_not_evaluated_is_not_called_unfinished(tmp_path: Path) -> None:
    write_run(tmp_path, "mt_sac", 0, {})
    (tmp_path / "mt_sac" / "MT10-Fixed_0" / "evaluations.csv").unlink()
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert row == "| MT-SAC | not evaluated (sb3-softmod evaluate) |"
    write_run(tmp_path, "mt_sac", 1, {2000: [0.0, 0.5]})
    *_, row = results_table(find_runs(tmp_path)[0]).splitlines()
    assert row.endswith("too few for a spread); 1 not evaluated (sb3-softmod evaluate) |")


def test_runs_behind_links_are_found_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "scratch", "mt_sac", 0, {2000: [0.0, 0.5]})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mt_sac").symlink_to(folder.parent)
    (tmp_path / "logs" / "latest").symlink_to(folder)
    (tmp_path / "logs" / "again").symlink_to(tmp_path / "logs")  # a circle
    (tmp_path / "scratch" / "back").symlink_to(tmp_path / "logs")
    runs, problems = find_runs(tmp_path / "logs")
    assert (len(runs), problems) == (1, [])


def test_a_rate_is_100_only_where_it_is() -> None:
    rates = {0.0: "0 %", 0.002: "1 %", 0.004: "1 %", 0.5: "50 %", 0.996: "99 %", 1.0: "100 %", math.nan: ""}
    assert [percent(rate) for rate in rates] == list(rates.values())


def test_a_model_of_before_the_end_is_not_the_last(tmp_path: Path) -> None:
    """The checkpoints of a run go once its last model is written."""
    folder = write_run(tmp_path, "mt_sac", 0, {2000: [0.0, 0.5]})
    (folder / "MT10-Fixed.zip").write_bytes(b"of a pause")
    (folder / "checkpoints" / "000000001000").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="was ended before all of it was written, which sb3-softmod train"):
        load_model(load_run(folder))


def test_a_run_in_wrapped_envs_is_evaluated_by_its_training_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 0, {2000: [0.0, 0.5]}, hyperparams=dict(env_wrapper="my.Wrapper"))
    with pytest.raises(ConfigurationError, match=r"MT10-Fixed_0 was trained in envs with a wrapper \(env_wrapper of"):
        env_options(load_run(folder))


def test_a_set_whose_tasks_report_no_success(tmp_path: Path) -> None:
    write_run(tmp_path, "mt_sac", 1, {2000: [math.nan, math.nan]}, benchmark="DMC-Walker")
    write_run(tmp_path, "mt_sac", 1, {2000: [0.5, 1.0]})
    runs = find_runs(tmp_path)[0]
    *_, row = results_table(runs).splitlines()
    assert row == "| MT-SAC | reports no success | 75.0 % (1 seed of 5 episodes a task, too few for a spread) |"
    assert next(csv.DictReader(io.StringIO(results_table(runs, "csv"))))["mean"] == ""
    with pytest.raises(ConfigurationError, match="No run on DMC-Walker was evaluated, with tasks that report success"):
        collect_curves(runs, "DMC-Walker")


def test_an_unknown_format_is_refused(logs: Path) -> None:
    with pytest.raises(ConfigurationError, match="Unknown format 'markdwon': did you mean 'markdown'"):
        results_table(find_runs(logs)[0], "markdwon")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ curves


def test_curves_are_interpolated_as_far_as_all_runs_came(tmp_path: Path) -> None:
    write_run(tmp_path, "mt_sac", 1, {0: [0.0, 0.0], 1000: [0.2, 0.4], 2000: [0.6, 1.0]})
    write_run(tmp_path, "mt_sac", 2, {0: [0.0, 0.0], 500: [0.5, 0.5], 1000: [0.5, 0.5]}, status="running")
    (curve,) = collect_curves(find_runs(tmp_path)[0], "MT10-Fixed")
    assert curve.label == "MT-SAC (2 seeds of 5 episodes a task, no interval)"
    assert curve.goals == "fixed goals"
    assert curve.steps.tolist() == [0, 500, 1000]
    np.testing.assert_allclose(curve.success[0], [[0.0, 0.0], [0.1, 0.2], [0.2, 0.4]])
    np.testing.assert_allclose(curve.success[1], [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]])


def test_a_run_that_was_begun_anew_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path, "mt_sac", 1, {0: [0.0, 0.0], 1000: [1.0, 1.0]}, status="running", suffix="-killed")
    write_run(tmp_path, "mt_sac", 1, {0: [0.0, 0.0], 2000: [0.6, 1.0]})
    (curve,) = collect_curves(find_runs(tmp_path)[0], "MT10-Fixed")
    assert curve.label == "MT-SAC (1 seed of 5 episodes a task, no interval)"
    assert curve.steps.tolist() == [0, 2000]
    assert "not finished" not in results_table(find_runs(tmp_path)[0])
    for steps in (500, 1500):  # two that were ended
        success = {0: [0.0, 0.0], steps: [1.0, 1.0]}
        write_run(tmp_path, "mt_sac", 2, success, status="running", suffix=f"-{steps}")
    assert "not finished: 1,500 of 2,000 steps" in results_table(find_runs(tmp_path)[0])
    write_run(tmp_path, "mt_sac", 1, {0: [0.0, 0.0], 2000: [0.6, 1.0]}, suffix="-again")
    with pytest.raises(ConfigurationError, match=r"MT10-Fixed_1 and .*MT10-Fixed_1-again are the same seed"):
        collect_curves(find_runs(tmp_path)[0], "MT10-Fixed")


@pytest.mark.parametrize("by_task", [False, True])
def test_drawn_curves(logs: Path, by_task: bool) -> None:
    write_run(logs, "mt_sac", 1, {0: [0.0, 0.0], 2000: [0.6, 1.0]})
    write_run(logs, "mt_sac", 2, {0: [0.0, 0.0], 2000: [0.2, 0.4]})
    write_run(logs, "mt_sac", 3, {0: [0.0, 0.0], 2000: [0.25, 0.45]})
    figure = draw_curves(find_runs(logs)[0], "MT10-Fixed", by_task=by_task)
    (labels,) = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert labels == [
        "Ours (Deep) (3 seeds of 5 episodes a task)",
        "Ours (Shallow, w/o Obs & Balance) (1 seed of 5 episodes a task, no interval, 2,000 steps)",
        "Ours (Shallow, w/o Obs & Balance) (1 seed of 5 episodes a task, no interval, 4,000 steps)",
        "MT-SAC (3 seeds of 5 episodes a task)",
    ]
    assert figure.get_suptitle() == "evaluations during training, fixed goals; bands: 95 % of the mean over seeds"
    assert len(figure.axes) == 1 + by_task
    line = figure.axes[-1].lines[-1]  # MT-SAC, over all tasks or of the second
    seeds = np.array([1.0, 0.4, 0.45] if by_task else [0.8, 0.3, 0.35])
    expected = 100 * seeds.mean()
    np.testing.assert_allclose(line.get_ydata(), [0, expected])  # type: ignore[arg-type]
    assert len(figure.axes[-1].collections) == 2  # Ours (Deep) and MT-SAC: one seed has no band
    shade: Any = figure.axes[-1].collections[-1].get_paths()[0].vertices
    assert shade[:, 1].max() == 100  # where the bound would be above
    mean, interval = mean_and_interval(seeds[:, None])
    assert mean == pytest.approx(seeds.mean())
    assert interval is not None
    half = 4.302653 * seeds.std(ddof=1) / np.sqrt(3)  # Student's t of 2 degrees of freedom
    np.testing.assert_allclose(interval, [[seeds.mean() - half], [seeds.mean() + half]], rtol=1e-6)


def test_curves_of_an_unknown_benchmark_are_refused(logs: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No run on MT3 was evaluated, .* there are such runs on MT10-Fixed"):
        collect_curves(find_runs(logs)[0], "MT3")
