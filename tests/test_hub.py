"""A run as a folder for the hub, written and uploaded without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from point_mass import make_point_mass_env
from run_folders import write_run
from small_networks import TINY

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize
from sb3_softmod.cli import main
from sb3_softmod.hub import write_hub_folder

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(
        tmp_path, "softmod_deep", 1, {10: (0.2, 0.6)}, command="secret/path", env_steps=10, packages={"torch": "2.13"}
    )
    env = MultiTaskVecNormalize(make_point_mass_env(2))
    model = MultiTaskSAC("SoftModPolicy", env, policy_kwargs=TINY["SoftModPolicy"], seed=0, device="cpu")
    model.save(folder / "MT10-Fixed.zip")
    (folder / "MT10-Fixed").mkdir()
    (folder / "MT10-Fixed" / "config.yml").write_text("- gamma: 0.97\n")
    return folder


def test_the_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    files = write_hub_folder(run, out)
    assert {path.name for path in files} == {path.name for path in out.iterdir()}
    assert {path.name for path in files} == {
        *("softmod_deep-MT10-Fixed.zip", "README.md", "config.json", "config.yml", "results.json")
    }
    before, after = (MultiTaskSAC.load(path, device="cpu") for path in (run / "MT10-Fixed.zip", files[0]))
    raw = np.array([0.1, -0.2])
    np.testing.assert_array_equal(before.act(raw, "corner-1"), after.act(raw, "corner-1"))

    _, head, text = (out / "README.md").read_text().split("---\n", 2)
    (entry,) = yaml.safe_load(head)["model-index"]
    metrics = {m["name"]: m["value"] for result in entry["results"] for m in result["metrics"]}
    assert metrics == {
        "success rate, push": 0.2,
        "success rate, pull": 0.6,
        "success rate, mean": 0.4,
        "mean return of an episode": 40.0,
    }
    assert "| push | 20 % | 4 % to 62 % | 20 |" in text
    assert "at 10 steps: 5 episodes of each task, fixed goals" in text
    assert json.loads((out / "config.json").read_text())["packages"] == {"torch": "2.13"}
    assert not any("secret" in path.read_text() for path in files if path.suffix != ".zip")


def test_the_evaluation_must_be_of_the_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"too good, since it was chosen by that: .* --best comes first"):
        write_hub_folder(run, tmp_path / "hub", best=True)
    metrics = dict(success_rate=1.0, success_at_end_rate=1.0, mean_return=7.0, length=9.0, episodes=50)
    settings = dict(model="best", protocol="metaworld", goals="each-once", seed=3, horizon=500)
    tasks = {"push": metrics, "pull": metrics}
    (run / "evaluation.json").write_text(json.dumps(dict(settings=settings, tasks=tasks)))
    with pytest.raises(ConfigurationError, match="is of the best model: evaluate the one that is to be published"):
        write_hub_folder(run, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
    (run / "MT10-Fixed.zip").rename(run / "best_model.zip")
    write_hub_folder(run, tmp_path / "hub", best=True)
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "by the protocol 'metaworld': 50 episodes of each task, each-once goals of seed 3, horizon 500." in text


def test_the_upload(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []

    class Api:
        def create_repo(self, name: str, exist_ok: bool) -> str:
            said.append(name)
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            if repo_id == "you/full":
                raise OSError("no space")
            said.append(sorted(path.name for path in Path(folder_path).iterdir()))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert main(["hub", str(run), "--upload", "you/mt10"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/you/mt10"
    assert said[0] == "you/mt10"
    assert "README.md" in said[1]
    assert main(["hub", str(run), "--upload", "you/full"]) == 2
    assert "The hub did not take you/full: OSError: no space" in capsys.readouterr().err
    assert main(["hub", str(run), "--out", str(tmp_path / "new"), "--upload", "mt10"]) == 2
    assert "is called 'you/name', not 'mt10'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
