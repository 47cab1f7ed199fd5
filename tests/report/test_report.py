"""The report of runs is one HTML file that says what they were, how they went, and what is missing."""

from __future__ import annotations

import base64
import ctypes.util
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import TASKS, write_run
from zoo_runs import train

from sb3_softmod import ConfigurationError
from sb3_softmod.cli import main
from sb3_softmod.evaluation import TaskEvaluation
from sb3_softmod.report.charts import javascript
from sb3_softmod.report.curves import METRICS
from sb3_softmod.report.write import write_report
from sb3_softmod.routing.routes import RoutingSamples, RoutingStatistics
from sb3_softmod.runs.progress import read_progress

VOID = {"meta", "img", "link", "br", "input", "hr"}
SHAPES = {"path"}


class Page(HTMLParser):
    """Checks that elements are closed in order, that ids are unique, and that nothing is loaded from elsewhere."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.html = file.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str]] = []
        self.videos: list[str] = []
        self.drawings: list[tuple[str, str]] = []
        self.script = ""
        self.charts: dict[str, Any] = {}
        self.words = ""
        self.feed(self.html)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = {name: value or "" for name, value in attrs}
        for name in ("src", "href", "poster", "action", "srcset", "data"):
            assert re.match(r"$|data:|#", values.get(name, ""))
        if "href" in values:
            assert f'id="{values["href"][1:]}"' in self.html
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.images.append(values)
        if tag == "video":
            self.videos.append(values["src"])
        if tag == "script":
            self.script = values.get("id", "")
        if "data-network" in values:
            self.drawings.append((values["data-network"], values["data-task"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag in SHAPES

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and self.script:
            if self.script == "curves":
                self.charts = {chart["key"]: chart for chart in json.loads(data)}
            else:
                assert data == javascript()
        elif self.open and self.open[-1] in ("style", "script"):
            assert not re.search(r"https?:|url\(|@import|fetch", data)
        else:
            self.words += f" {data}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of soft modularization and one of MT-SAC, of two evaluations each."""
    logs = tmp_path_factory.mktemp("logs")
    for algo in ("softmod_shallow", "mt_sac"):
        assert train(logs, algo=algo) == 0
    return logs


@pytest.fixture(scope="module")
def routed(runs: Path) -> tuple[Path, Page]:
    folder = runs / "softmod_shallow" / "MT3_1"
    assert main(["report", str(folder)]) == 0
    return folder, Page(folder / "report.html")


# --------------------------------------------------------------------------------- the whole


def test_a_routed_run(routed: tuple[Path, Page]) -> None:
    folder, page = routed
    manifest = json.loads((folder / "run.json").read_text())
    tasks = manifest["tasks"]
    for text in ("Ours (Shallow)", "MT3", "seed 3", "finished", *tasks, manifest["hardware"]["system"]):
        assert text in page.words
    assert "Missing in this report" not in page.words
    for name, version in manifest["packages"].items():
        assert f"{name} {version}" in page.words
    assert list(page.charts) == [metric.key for metric in METRICS]
    for key in ("q_value", "critic_loss", "ent_coef", "loss_weight"):
        steps, logged = read_progress(folder, [key], tasks)[key]
        (line,) = page.charts[key]["lines"]
        assert line["steps"] == steps.tolist()
        np.testing.assert_allclose(np.array(line["values"][1:], float), logged.T, rtol=1e-3)
        np.testing.assert_allclose(line["values"][0], logged.mean(1), rtol=1e-3)
    assert page.drawings == [(network, task) for network in ("actor", "critic 1", "critic 2") for task in tasks]
    assert len(page.images) == 9 + 2 + 3  # t-SNE and similarity, and three pairs
    assert "strong in both are marked: at least 1.5/n = 0.75" in page.words
    for image in page.images:
        assert image["alt"]
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(content)).tag.endswith("svg")
    assert not page.videos
    assert not list(folder.glob("*.tmp"))


def test_plot_routing_gives_the_same_numbers(
    routed: tuple[Path, Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = routed
    seen: dict[str, RoutingSamples] = {}
    of = RoutingStatistics.of

    def spy(cls: type[RoutingStatistics], samples: RoutingSamples) -> RoutingStatistics:
        seen[samples.network] = samples
        return of(samples)

    monkeypatch.setattr(RoutingStatistics, "of", classmethod(spy))
    assert main(["report", str(folder), "--out", str(tmp_path / "report.html")]) == 0
    of_report, seen = seen, {}
    assert main(["plot", "routing", str(folder), "--out", str(tmp_path)]) == 0
    assert of_report.keys() == seen.keys() == {"actor", "critic 1", "critic 2"}
    for network, samples in seen.items():
        np.testing.assert_array_equal(samples.routes(), of_report[network].routes())


def test_a_method_without_routing(runs: Path, tmp_path: Path) -> None:
    out, problems = write_report(runs / "mt_sac" / "MT3_1", tmp_path / "new" / "mt_sac.html")
    page = Page(out)
    assert out == tmp_path / "new" / "mt_sac.html"
    assert not problems
    assert "ent_coef" in page.charts
    assert not {"routing", "alike"}.intersection(page.ids)
    assert not page.images


def test_videos(runs: Path, tmp_path: Path) -> None:
    """Or, without OpenGL, what is missing for them; the rest is there."""
    draws = ctypes.util.find_library("OSMesa") is not None
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    out = tmp_path / "report.html"
    command = f"report --best --video {runs / 'mt_sac' / 'MT3_1'} --out {out}".split()
    done = subprocess.run(
        [sys.executable, "-m", "sb3_softmod.cli", *command],
        capture_output=True,
        text=True,
        env={**env, "MUJOCO_GL": "osmesa" if draws else "glfw"},
    )
    assert done.returncode == 0, done.stderr
    page = Page(out)
    assert "ent_coef" in page.charts
    if not draws:
        assert "left out: Rendering failed" in done.stderr
        assert "Rendering failed" in page.words
        return
    assert "Missing in this report" not in page.words
    assert "policy of the best model" in page.words
    assert len(page.videos) == 3
    for video in page.videos:
        kind, _, content = video.partition(",")
        assert kind == "data:video/mp4;base64"
        assert base64.b64decode(content)[4:8] == b"ftyp"


# -------------------------------------------------------------------------------- the numbers


def test_success_of_the_evaluation_after_training(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4], 2000: [0.6, 1.0]})
    settings = dict(model="best", protocol="metaworld", seed=7)
    TaskEvaluation(TASKS, [50, 50], [0.9, 0.5], [0.8, 0.42], [1234.4, 20], [150, 199.6], settings).to_json(
        folder / "evaluation.json"
    )
    page = Page(write_report(folder)[0])
    assert "50 episodes a task after training, the best model, metaworld protocol, goals of seed 7" in page.words
    assert "push 90 % 79 % to 96 % 80 % 1,234 150" in page.words  # Wilson
    assert "pull 50 % 37 % to 63 % 42 % 20 200" in page.words
    assert "mean success 70 %" in page.words
    assert "width:90.0%" in page.html
    assert page.charts["success"]["lines"] == [
        dict(
            name="seed 1", series="seed 1", mean=False, steps=[1000, 2000], values=[[0.3, 0.8], [0.2, 0.6], [0.4, 1.0]]
        )
    ]


def test_success_of_the_last_evaluation_of_training(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4], 2000: [0.6, 1.0]}, status="stopped")
    page = Page(write_report(folder)[0])
    assert "5 episodes a task, the last evaluation during training, at 2,000 environment steps" in page.words
    assert "push 60 % 23 % to 88 % – 60 –" in page.words  # noqa: RUF001
    assert "seed 1 stopped" in page.words


def test_tasks_that_report_no_success_have_returns(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 2, {1000: [np.nan] * 2})
    text = (folder / "evaluations.csv").read_text().replace("nan,nan,nan", "nan,nan,-30")
    (folder / "evaluations.csv").write_text(text)
    page = Page(write_report(folder)[0])
    assert list(page.charts) == ["returns"]
    assert page.charts["returns"]["lines"][0]["values"] == [[-30], [-30], [-30]]
    assert "mean success" not in page.words
    page = Page(write_report(write_run(tmp_path, "mt_sac", 1, {1000: [np.nan] * 2}))[0])
    assert not page.charts


# --------------------------------------------------------------------------------- several runs


def write_seeds(
    logs: Path, method: str = "mt_sac", rates: tuple[float, ...] = (0.2, 0.4, 0.6), **options: Any
) -> list[Path]:
    """Runs whose success goes from 0 to a rate of each."""
    evaluations = ({1000: [0.0, 0.0], 2000: [rate, rate]} for rate in rates)
    return [write_run(logs, method, seed, each, **options) for seed, each in enumerate(evaluations)]


def test_seeds_of_a_method(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path)
    out, problems = write_report(folders)
    page = Page(out)
    assert out == tmp_path / "mt_sac" / "report.html"
    assert "MT10-Fixed, 3 runs side by side" in page.words
    # 40 % ± t(0.975, 2) * 20 % / sqrt(3)
    assert "mean success 40 % 3 runs, 0 % to 90 %" in page.words
    for text in (
        "seed 0 20 % 4 % to 62 %",
        "mean of seed 2 60 %",
        "seed seed 0 0 seed 1 1 seed 2 2",
        "horizon, steps 200",
    ):
        assert text in page.words
    *of_runs, mean = page.charts["success"]["lines"]
    assert [line["series"] for line in of_runs] == ["seed 0", "seed 1", "seed 2"]
    assert (mean["name"], mean["mean"], mean["values"][0]) == ("mean of 3 runs", True, [0, 0.4])
    np.testing.assert_allclose(np.array([mean["low"][1], mean["high"][1]]), [[0.0, 0.0], [0.0, 0.8968]], atol=1e-4)
    assert all(str(folder) in " ".join(problems) for folder in folders)  # they hold no progress.csv


def test_methods_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [*write_seeds(tmp_path, rates=(0.2, 0.4)), *write_seeds(tmp_path, "softmod_deep", (0.8,))]
    out = tmp_path / "both.html"
    assert main(["report", *map(str, folders), str(folders[0]), "--out", str(out)]) == 0  # one is named twice
    page = Page(out)
    assert "MT-SAC and Ours (Deep) MT10-Fixed, 3 runs side by side" in page.words
    lines = page.charts["success"]["lines"]
    assert [line["name"] for line in lines] == [
        "MT-SAC, seed 0",
        "MT-SAC, seed 1",
        "Ours (Deep), seed 0",
        "MT-SAC, mean of 2 runs",
    ]
    assert [line["series"] for line in lines] == ["MT-SAC", "MT-SAC", "Ours (Deep)", "MT-SAC"]
    assert "low" not in lines[-1]  # of two seeds no interval
    assert "MT-SAC 30 % 2 runs Ours (Deep) 80 % 1 run" in page.words


def test_runs_that_are_told_apart_by_budget_and_folder(tmp_path: Path) -> None:
    short = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]}, planned_env_steps=1000)
    same = [write_run(tmp_path / place, "mt_sac", 1, {2000: [0.2, 0.4]}) for place in "ab"]
    page = Page(write_report([short, *same])[0])
    assert [line["name"] for line in page.charts["success"]["lines"]] == [
        "MT-SAC, 1,000 steps, seed 1",
        *(f"MT-SAC, 2,000 steps, seed 1, {folder}" for folder in same),  # no mean: they are one seed
    ]


def test_what_a_mean_is_of(tmp_path: Path) -> None:
    """A seed counts once, a run that was killed not beside finished ones, and others than those evaluated alike not."""
    killed = write_run(tmp_path, "mt_sac", 1, {0: [0.0, 0.0], 500: [0.0, 0.0]}, status="running", suffix="-killed")
    stopped = write_run(tmp_path, "mt_sac", 4, {0: [0.0, 0.0], 1000: [0.0, 0.0]}, status="stopped")
    done = [write_run(tmp_path, "mt_sac", seed, {0: [0.0, 0.0], 2000: [0.4, 0.6]}) for seed in (1, 2, 3)]
    settings = dict(protocol="metaworld", model="last")
    found = TaskEvaluation(TASKS, [50, 50], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0], settings)
    found.to_json(done[2] / "evaluation.json")
    page = Page(write_report([killed, stopped, *done])[0])
    assert "MT-SAC, evaluated during training 50 % 2 runs MT-SAC, metaworld protocol 100 % 1 run" in page.words
    (mean,) = [line for line in page.charts["success"]["lines"] if line["mean"]]
    assert mean["name"] == "mean of 4 runs"  # a curve of the stopped one too, as far as all came
    assert mean["steps"][-1] == 1000


def test_a_run_without_any_curve_beside_another(tmp_path: Path) -> None:
    first = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]})
    other = write_run(tmp_path, "softmod_deep", 1, {1000: [0.2, 0.4]}, goals=None)
    (other / "evaluations.csv").unlink()
    TaskEvaluation(TASKS, [50] * 2, [1.0] * 2, [1.0] * 2, [1.0] * 2, [9.0] * 2).to_json(other / "evaluation.json")
    assert "Ours (Deep) 100 % 1 run" in Page(write_report([first, other])[0]).words
    manifest = json.loads((other / "run.json").read_text())
    del manifest["goals"]
    (other / "run.json").write_text(json.dumps(manifest))
    assert "MT10-Fixed, seed 1" in Page(write_report([other])[0]).words


def test_runs_that_cannot_stand_side_by_side(tmp_path: Path) -> None:
    first, second = write_seeds(tmp_path, rates=(0.2, 0.4))
    other = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]}, benchmark="MT3")
    with pytest.raises(ConfigurationError, match=r"0 is on MT10-Fixed, .*MT3_1 on MT3, .*: a report for each\."):
        write_report([first, other])
    with pytest.raises(ConfigurationError, match="in the report of one run: --best and --video, too"):
        write_report([first, second], video=True)
    with pytest.raises(ConfigurationError, match="needs the folder of a run"):
        write_report([])
    assert not list(tmp_path.rglob("*.html"))


def test_the_sheet_says_all_that_the_manifest_says(tmp_path: Path) -> None:
    facts: dict[str, Any] = dict(
        wall_time_s=3900.0,
        last_success_rate=0.25,
        env_kwargs=dict(seed=1234, horizon=20),
        arguments=["--algo", "mt_sac", "-params", "gamma:'0.9 9'"],
        git=dict(commit="13087bc", changed=True),
        temperature_of_the_room=[20, 21],
        continues=None,
    )
    page = Page(write_report(write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]}, **facts))[0])
    for text in (
        "training time 1 h 5 min",
        "success, last evaluation 25 %",
        "environment options seed 1234 horizon 20",
        "sb3-softmod train --algo mt_sac -params 'gamma:'\"'\"'0.9 9'\"'\"''",
        "source commit 13087bc changed yes",
        "Further temperature of the room 20, 21",
        "planned environment steps 2,000",
    ):
        assert text in page.words
    assert "continues" not in page.words


# ------------------------------------------------------------------------- missing and broken


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path, "softmod_deep", 1, {1000: [0.2, 0.4]}, status="running")
    (folder / "evaluations.csv").unlink()
    assert main(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{folder / 'report.html'}\n"
    page = Page(folder / "report.html")
    for message in (
        f"{folder} holds no evaluation yet: sb3-softmod evaluate {folder}",
        f"{folder} holds no MT10-Fixed.zip: the run did not end. Its best model so far: --best.",
        f"{folder} holds no progress.csv",
    ):
        assert message in page.words
        assert f"left out: {message}" in err
    assert "planned 2,000 steps" in page.words


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe\x00PK\x03\x04", b'{"tasks": {"push": 1}, "settings": {}}'])
@pytest.mark.parametrize("name", ["evaluations.csv", "evaluation.json", "progress.csv", "MT10-Fixed.zip"])
def test_a_broken_file_costs_only_its_part(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_run(tmp_path, "softmod_deep", 1, {1000: [0.2, 0.4], 2000: [0.6, 1.0]})
    before = set(write_report(folder)[1])
    (folder / name).write_bytes(content)
    out, problems = write_report(folder)
    page = Page(out)
    (problem, *_) = set(problems) - before
    assert str(folder) in problem
    assert problem in page.words
    assert ("push 60 % 23 % to 88 %" in page.words) == (name != "evaluations.csv")
    assert ("success" in page.charts) == (name != "evaluations.csv")


def test_names_are_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]}, error="a <script>alert(1)</script> & more")
    assert "a <script>alert(1)</script> & more" in Page(write_report(folder)[0]).words


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"is no run of sb3-softmod train: it holds no run\.json"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no run of sb3-softmod train" in capsys.readouterr().err
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]})
    with pytest.raises(ConfigurationError, match=f"Cannot write {tmp_path}: it is a folder"):
        write_report(folder, tmp_path)
    (folder / "run.json").write_text('{"status": "fini')
    with pytest.raises(ConfigurationError, match=r"run\.json is broken"):
        write_report(folder)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.html"))


# ------------------------------------------------------------------------------- progress.csv


def test_progress_that_is_half_written(tmp_path: Path) -> None:
    file = tmp_path / "progress.csv"
    header = "eval/x,time/total_timesteps,ent_coef/pull,ent_coef/push\n"
    file.write_text(header + "0.5,10,,\n,20,0.2,0.1\n,30,0.3,\n,40,0.4\n,50,0.5,0.2")
    steps, values = read_progress(tmp_path, ["ent_coef"], TASKS)["ent_coef"]
    assert steps.tolist() == [20, 30]
    np.testing.assert_array_equal(values, [[0.1, 0.2], [np.nan, 0.3]])
    with pytest.raises(ConfigurationError, match=r"progress\.csv has no column loss_weight/push"):
        read_progress(tmp_path, ["loss_weight"], TASKS)
    file.write_text(header)
    with pytest.raises(ConfigurationError, match="holds no ent_coef yet"):
        read_progress(tmp_path, ["ent_coef"], TASKS)


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = TaskEvaluation(TASKS, [5, 0], [0.2, np.nan], [0.0, np.nan], [1.5, np.nan], [9, np.nan], dict(seed=1))
    found.to_json(tmp_path / "evaluation.json")
    assert str(TaskEvaluation.from_json(tmp_path / "evaluation.json")) == str(found)
    with pytest.raises(ConfigurationError, match=r"Cannot read .*nothing\.json"):
        TaskEvaluation.from_json(tmp_path / "nothing.json")
