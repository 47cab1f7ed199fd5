"""The report of a run is one HTML file that says what the run was, how it went, and what is missing."""

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
from sb3_softmod.report.charts import chart, linear, logarithmic, short
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
        if "data-network" in values:
            self.drawings.append((values["data-network"], values["data-task"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag in SHAPES

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
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
    # The last temperatures and weights that were logged.
    logged = read_progress(folder, ["ent_coef", "loss_weight"], tasks)
    for heading, metric in (("Temperature of each task", "ent_coef"), ("Loss weight of each task", "loss_weight")):
        section = page.words.split(heading)[1]
        for task, value in zip(tasks, logged[metric][1][-1], strict=True):
            assert re.search(rf"{task} {value:.3g}\b", section)
    assert page.drawings == [(network, task) for network in ("actor", "critic 1", "critic 2") for task in tasks]
    assert len(page.images) == 9 + 3  # t-SNE, similarity, pairs
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
    assert "Temperature of each task" in page.words
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
    assert "Temperature of each task" in page.words
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
    assert "Success during training" in page.words
    assert "push 60 %" in page.words.split("Each task")[1]


def test_success_of_the_last_evaluation_of_training(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4], 2000: [0.6, 1.0]}, status="stopped")
    page = Page(write_report(folder)[0])
    assert "5 episodes a task, the last evaluation during training, at 2,000 environment steps" in page.words
    assert "push 60 % 23 % to 88 % – 60 –" in page.words  # noqa: RUF001
    assert "seed 1 stopped" in page.words


def test_tasks_that_report_no_success_have_returns(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, "mt_sac", 1, {1000: [np.nan] * 2}))[0])
    assert "Return during training" in page.words
    folder = write_run(tmp_path, "mt_sac", 2, {1000: [np.nan] * 2})
    text = (folder / "evaluations.csv").read_text().replace("nan,nan,nan", "nan,nan,-30")
    (folder / "evaluations.csv").write_text(text)
    page = Page(write_report(folder)[0])
    assert "push -30" in page.words.split("Each task")[1]
    assert "mean success" not in page.words


def test_charts() -> None:
    steps, values = np.array([50, 100]), np.array([[0.0, np.nan], [50.0, 100.0]])
    drawn = chart(steps, values, ["a", "b"], y=linear(0, 100, short), text=short)
    assert [(panel.title, panel.last, panel.path) for panel in (drawn.mean, *drawn.panels)] == [
        ("mean", "75", "M50,100 100,25"),
        ("a", "50", "M50,100 100,50"),
        ("b", "100", "M100,0"),
    ]
    assert drawn.panels[1].end == "M100,0h0"  # a dot: one point has no line
    assert drawn.x.ticks == [(0, "0"), (25, "25"), (50, "50"), (75, "75"), (100, "100")]
    many = chart(np.arange(5000), np.zeros((5000, 1)), ["a"], y=linear(0, 1, short), text=short)
    assert many.panels[0].path.count(",") == 200
    assert many.panels[0].path.endswith(" 100,100")


def test_logarithmic_axis() -> None:
    axis = logarithmic(np.array([0.003, np.nan, 2.0, 0.0]))
    assert axis.ticks == [(0, "0.001"), (25, "0.01"), (50, "0.1"), (75, "1"), (100, "10")]
    np.testing.assert_allclose(axis.place(np.array([0.001, 0.1, 10.0])), [0, 50, 100])
    assert len(logarithmic(np.array([1e-9, 1.0])).ticks) <= 5
    assert len(logarithmic(np.array([1.0])).ticks) == 2


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
    assert "planned steps 2k" in page.words


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
    assert ("Success during training" in page.words) == (name != "evaluations.csv")


def test_names_are_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mt_sac", 1, {1000: [0.2, 0.4]}, command="train <script>alert(1)</script> & more")
    assert "train <script>alert(1)</script> & more" in Page(write_report(folder)[0]).words


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
