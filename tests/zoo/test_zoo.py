"""``sb3-softmod train`` and ``enjoy``, from the command line to the files."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from stable_baselines3.common.monitor import load_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zoo_runs import MT3, TINY, TINY_ENV, config, manifest, run_of, train

from sb3_softmod import MultiTaskSAC, MultiTaskVecNormalize, make_metaworld_env
from sb3_softmod.cli import main
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.methods import METHODS
from sb3_softmod.zoo.__main__ import run as run_script

#: Methods with an algorithm, a network or a batch of another kind; the rest differ in what a file says.
KINDS = ("softmod_deep", "single_task_sac", "hard_routing", "mt_sac_pcgrad")


@pytest.mark.parametrize(
    "algo", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_every_method(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on three real tasks, played, and loaded by the library."""
    assert train(tmp_path, algo=algo, steps=300, env_kwargs=["horizon:25"]) == 0
    run = run_of(tmp_path, algo)
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files == {
        "0.monitor.csv",
        "MT3.zip",
        "MT3/args.yml",
        "MT3/command.txt",
        "MT3/config.yml",
        "MT3/vecnormalize.pkl",
        "best_model.zip",
        "evaluations.csv",
        "evaluations.npz",
        "progress.csv",
        "run.json",
    }
    facts = manifest(run)
    assert facts["status"] == "finished"
    assert facts["env_steps_by_task"] == dict.fromkeys(MT3, 100)
    assert facts["gradient_steps"] == 18  # one for each five steps of the envs, after the first ten

    capsys.readouterr()
    assert main(f"enjoy --algo {algo} --env MT3 -f {tmp_path} --load-best --episodes 2".split()) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if len(row) == 4 and row[2] == "%"] == [*MT3, "mean"]

    model = MultiTaskSAC.load(run / "best_model.zip")
    assert model.task_names == MT3
    observations = np.hstack([np.zeros((3, 39)), np.eye(3)])
    assert model.predict(observations, deterministic=True)[0].shape == (3, 4)


def test_the_best_model_in_the_library(tmp_path: Path) -> None:
    """It brings its normalisation, and plays as in the evaluation that found it the best."""
    assert train(tmp_path, steps=80) == 0
    run = run_of(tmp_path)
    model = MultiTaskSAC.load(run / "best_model.zip")
    assert model.normalization is not None
    env = MultiTaskVecNormalize(make_metaworld_env("MT3", seed=3, max_episode_steps=5, n_workers=0))
    env.set_statistics(model.normalization)
    log = np.load(run / "evaluations.npz")
    assert log["timesteps"].tolist() == [75]
    assert evaluate_tasks(model, env, n_eval_episodes=1).mean_return == log["results"][0].tolist()


def test_what_other_scripts_read(tmp_path: Path) -> None:
    assert train(tmp_path / "logs", "-tb", str(tmp_path / "tb"), params=["n_envs:6"], env_kwargs=["seed:7"]) == 0
    run = run_of(tmp_path / "logs")

    log = np.load(run / "evaluations.npz")
    assert log["timesteps"].tolist() == [72, 144]  # steps of six envs
    assert log["task_names"].tolist() == MT3
    assert log["results"].shape == log["successes"].shape == log["ep_lengths"].shape == (2, 3)
    with open(run / "evaluations.csv") as file:
        assert [row["task"] for row in csv.DictReader(file)] == MT3 * 2

    episodes = load_results(str(run))
    assert sorted(set(episodes["task_name"])) == sorted(MT3)
    assert len(episodes) == 150 // 5
    assert set(episodes["l"]) == {5}
    assert set(episodes["is_success"]) <= {True, False}

    events = EventAccumulator(str(tmp_path / "tb" / "MT3" / "softmod_deep_1" / "MultiTaskSAC_1")).Reload()
    assert len(events.Scalars("eval_success_rate/reach-v3")) == 2

    hyperparams = config(run)
    assert hyperparams["policy"] == "SoftModPolicy"
    assert hyperparams["policy_kwargs"].items() >= dict(preset="deep", embedding_dim=128, module_dim=128).items()
    assert hyperparams["env_kwargs"] == dict(seed=7, horizon=5)
    args = yaml.load((run / "MT3" / "args.yml").read_text(), yaml.UnsafeLoader)
    assert (args["algo"], args["env"]) == ("softmod_deep", "MT3")


@pytest.mark.parametrize(
    "command",
    [
        "rl_zoo3_enjoy --algo softmod_deep --env MT3 -f logs --no-render -n 12 --load-best",
        "all_plots -a softmod_deep -e MT3 -f logs --no-display -k successes -o data",
        "plot_train -a softmod_deep -e MT3 -f logs -w 2 -y success",
        "plot_from_file -i data.pkl -o curves.svg",
    ],
)
def test_scripts_of_rl_zoo(
    command: str, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = command.split()
    monkeypatch.chdir(logs)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with plt.rc_context():
        matplotlib.use("agg")
        run_script(script)
    out = capsys.readouterr().out
    if script == "rl_zoo3_enjoy":
        assert re.findall(r"Episode Length (\d+)", out) == ["5", "5"]
    if script == "all_plots":
        assert re.search(r"\|MT3 +\| *0 \+/- 0 *\|", out)
    if script == "plot_train":
        assert len(plt.gca().lines) == 2
    if script == "plot_from_file":
        assert "MT3" in (logs / "curves.svg").read_text()
    assert "No data" not in out


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of one method in ``logs``."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder / "logs") == train(folder / "logs") == 0
    return folder


# -------------------------------------------------------------- hyperparameters


def test_overrides(tmp_path: Path) -> None:
    changes = ["gamma:0.5", "policy_kwargs:dict(num_modules=3, module_dim=8)", "normalize:False"]
    changes += ["learning_rate:'lin_0.001'"]
    kwargs = ["goals:'fixed'", "horizon:4", "reward_version:'v1'"]
    assert train(tmp_path, "--save-freq", "60", params=changes, env_kwargs=kwargs) == 0
    run = run_of(tmp_path)
    model = MultiTaskSAC.load(run / "MT3.zip")
    assert model.gamma == 0.5
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5e-4, 0.0])
    # Those of the command line, of the method and of the file.
    wanted = dict(num_modules=3, module_dim=8, preset="deep", embedding_dim=128)
    assert model.policy.network_kwargs == wanted
    assert config(run)["policy_kwargs"].items() >= wanted.items()
    of_critics = dict(wanted, normalization="layer")  # what the command line says is for both
    assert model.critic.network_kwargs == of_critics
    assert not (run / "MT3" / "vecnormalize.pkl").exists()
    facts = manifest(run)
    assert (facts["goals"], facts["horizon"], facts["reward_version"]) == ("fixed", 4, "v1")
    assert set(load_results(str(run))["l"]) == {4}
    assert (run / "rl_model_60_steps.zip").exists()
    assert np.load(run / "evaluations.npz")["ep_lengths"].max() == 4


def test_env_kwargs_of_evaluation(tmp_path: Path) -> None:
    assert train(tmp_path, "--eval-env-kwargs", "horizon:3") == 0
    assert set(load_results(str(run_of(tmp_path)))["l"]) == {5}
    assert np.load(run_of(tmp_path) / "evaluations.npz")["ep_lengths"].tolist() == [[3, 3, 3]] * 2


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("default:\n  n_timesteps: 60\n  learning_rate: 0.01\n  env_kwargs: {horizon: 6}\n")
    command = f"train --algo mt_sac --env MT3 -f {tmp_path} --conf-file {file} --seed 0 --eval-freq -1".split()
    assert main([*command, *TINY, "-params", "batch_size:6", "learning_starts:9", "buffer_size:300"]) == 0
    run = run_of(tmp_path, "mt_sac")
    facts = manifest(run)
    assert (facts["env_steps"], facts["n_envs"], facts["horizon"]) == (60, 3, 6)
    assert config(run)["learning_rate"] == 0.01
    assert not (run / "evaluations.npz").exists()


def test_wrappers_of_rl_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrapper = "env_wrapper:[{'rl_zoo3.wrappers.ActionNoiseWrapper': {'noise_std': 0.2}}]"
    assert train(tmp_path, params=[wrapper, "frame_stack:2", "normalize:False"]) == 0
    model = MultiTaskSAC.load(run_of(tmp_path) / "MT3.zip")
    assert model.observation_space.shape == (2 * (39 + 3),)
    assert main(f"enjoy --algo softmod_deep --env MT3 -f {tmp_path} --episodes 1 --task reach-v3".split()) == 0
    assert "reach-v3" in capsys.readouterr().out


def test_a_method_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that the page of the methods adds, in a module of the user's."""
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "TaskMaskPolicy" in block]
    (tmp_path / "my_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    package = ["--gym-packages", "my_methods"]
    assert train(tmp_path / "logs", *package, algo="task_mask", params=["policy_kwargs:dict(width=16)"]) == 0
    run = run_of(tmp_path / "logs", "task_mask")
    assert config(run)["policy"] == "my_methods.TaskMaskPolicy"
    capsys.readouterr()
    command = f"enjoy --algo task_mask --env MT3 -f {tmp_path / 'logs'} --episodes 1".split()
    assert main([*command, *package]) == 0
    assert "reach-v3" in capsys.readouterr().out
    del METHODS["task_mask"]
    assert train(tmp_path, "--gym-packages", "my_method", algo="task_mask") == 2
    assert "--gym-packages my_method: No module named 'my_method'" in capsys.readouterr().err


def test_other_algorithms_of_sb3(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yml"
    file.write_text("MT3:\n  policy: MlpPolicy\n  n_steps: 8\n  batch_size: 12\n  n_timesteps: 60\n  normalize: true\n")
    command = f"train --algo ppo --env SoftMod/MT3-v3 -f {tmp_path} -conf {file} --seed 0 --eval-freq 30".split()
    assert main([*command, *TINY, "--env-kwargs", *TINY_ENV]) == 0
    assert main(f"enjoy --algo ppo --env MT3 -f {tmp_path} --episodes 1".split()) == 0
    assert np.load(run_of(tmp_path, "ppo") / "evaluations.npz")["successes"].shape == (2, 3)


# ------------------------------------------------------------------ run by run


def test_a_repeated_run_keeps_the_first(logs: Path) -> None:
    first, second = (run_of(logs / "logs", number=number) for number in (1, 2))
    assert manifest(first)["status"] == manifest(second)["status"] == "finished"
    # The same seed, the same run.
    for name in ("results", "successes"):
        np.testing.assert_array_equal(*(np.load(run / "evaluations.npz")[name] for run in (first, second)))


# ------------------------------------------------------------------------ enjoy


def test_enjoy_one_task(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"enjoy --algo softmod_deep --env SoftMod/MT3-v3 -f {logs / 'logs'} --exp-id 1 --episodes 2"
    assert main([*command.split(), "--task", "drawer-close-v3"]) == 0
    once = capsys.readouterr().out
    assert main([*command.split(), "--task", "drawer-close-v3"]) == 0
    assert capsys.readouterr().out == once  # the same seed, the same episodes
    assert re.search(r"drawer-close-v3 +\d+ % +-?\d+\.\d$", once, re.MULTILINE)
    assert "reach-v3" not in once
    assert "mean" not in once
    assert "seed 3" in once  # that of training
    twice = ["--env-kwargs", "seed:4", "--env-kwargs", "horizon:5"]
    assert main([*command.split(), "--task", "drawer-close-v3", *twice]) == 0
    assert "seed 4" in capsys.readouterr().out  # the first of the two counts too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--algo softmod_deep --env MT3 --task reach", "Unknown task 'reach' of MT3: did you mean 'reach-v3'?"),
        ("--algo softmod_deep --env MT30", "Unknown env 'MT30': did you mean 'MT3' or"),
        ("--algo softmod_dep --env MT3", "Unknown algo 'softmod_dep': did you mean 'softmod_deep'"),
        ("--algo mt_sac --env MT3", "Runs in {logs}: {logs}/softmod_deep/MT3_1, {logs}/softmod_deep/MT3_2."),
        ("--algo softmod_deep --env MT3 --exp-id 9", "MT3_9 folder was not found"),
        ("--algo softmod_deep --env MT3 --load-checkpoint 7", "No model found for softmod_deep on MT3"),
        ("--algo softmod_deep --env MT3 --episodes 0", "--episodes must be at least 1, not 0."),
        ("--algo softmod_deep --env MT3 --env-kwargs horizn:3", "Unknown env argument 'horizn' of MT3: did you mean"),
    ],
)
def test_enjoy_refuses(options: str, message: str, logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(logs / "logs")
    assert main(["enjoy", "-f", folder, *options.split()]) == 2
    assert message.replace("{logs}", folder) in capsys.readouterr().err


# ----------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algo", "softmod_dep", "--env", "MT3"], "Unknown algo 'softmod_dep': did you mean 'softmod_deep'"),
        (["--algo", "mt_sac", "--env", "MT10-Conditoned"], "Unknown env 'MT10-Conditoned': did you mean 'MT10-Cond"),
        (["--algo", "mt_sac", "--env", "CartPole-v1"], "Unknown env 'CartPole-v1'"),
        (["--algo", "mt_sac", "--env", "MT3+push-v3"], "MT3+push-v3 is a set for a trained policy (sb3-softmod adapt)"),
        (["--algo", "mt_sac"], "--env is missing: MT10-Fixed, MT10-Conditioned"),
        (["--env", "MT3"], "--algo is missing: softmod_shallow, softmod_deep"),
        (["-params", "learning_rat:0.1"], "Unknown hyperparameter 'learning_rat': did you mean 'learning_rate'"),
        (["-params", "learning_rate:fast"], "-params learning_rate:fast: name 'fast' is not defined. Write key:value"),
        (["-params", "policy_kwargs:dict(module_dm=3)"], "Unknown option 'module_dm' of SoftModPolicy: did you mean"),
        (["-params", "batch_size:100"], "batch_size=100 is not divisible by the 3 tasks"),
        (["-params", "n_envs:4"], "n_envs must be at most the number of tasks of MT3, 3, or a multiple of it, not 4."),
        (["--env-kwargs", "goal:1"], "Unknown env argument 'goal' of MT3: did you mean 'goals'?"),
        (["--env-kwargs", "goals:'fix'"], "Unknown goals 'fix': did you mean 'fixed'?"),
        (["--eval-env-kwargs", "max_episode_steps:9"], "Unknown env argument 'max_episode_steps' of MT3"),
        (
            ["--conf-file", "lapto"],
            "There is no file of hyperparameters 'lapto': did you mean 'laptop'",
        ),
        (["-i", "none.zip"], "There is no model 'none.zip' to go on with: name a .zip file."),
        (["--algo", "ppo"], "RL Zoo has no hyperparameters for ppo on MT3: name a file of yours with --conf-file."),
    ],
)
def test_train_refuses(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a line for people, and before anything is made."""
    base = ["--algo", "softmod_deep", "--env", "MT3"] if options[0] not in ("--algo", "--env") else []
    base = [*base, "--env", "MT3"] if options == ["--algo", "ppo"] else base
    assert main(["train", *base, "-f", str(tmp_path), "-n", "9", "--vec-env", "dummy", *options]) == 2
    assert f"sb3-softmod: {message}" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.glob("*/MT3_*"))


def test_a_model_of_other_tasks(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run_of(logs / "logs") / "best_model.zip"
    assert train(tmp_path, "-i", str(model), env="reach-v3", params=["n_envs:1"]) == 2
    assert "was saved for 3 tasks, but the env has 1." in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*"))


def test_options_that_are_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "-params", "gamma:0.5", "-params", "tau:0.5", params=["gamma:0.9"]) == 2
    assert "-params gives 'gamma' twice." in capsys.readouterr().err
    file = tmp_path / "mine.yml"
    file.write_text("MT3:\n  learning_rate: 1e-3\n")
    assert main(f"train --algo mt_sac --env MT3 -f {tmp_path} --conf-file {file}".split()) == 2
    assert "learning_rate is the text '1e-3': in YAML a number has a point, as 1.0e-3." in capsys.readouterr().err


def test_a_budget_in_which_nothing_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--eval-freq", "-1", steps=30) == 0
    message = "learning starts after 30 environment steps (learning_starts), and the run has 30 (-n)."
    assert f"Nothing will be learned: {message}" in capsys.readouterr().err


def test_a_model_of_another_method(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run_of(logs / "logs") / "best_model.zip"
    assert train(tmp_path, "-i", str(model), algo="mt_sac") == 2
    assert "holds a SoftModPolicy, and mt_sac has the policy MTMlpPolicy: continue it" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*"))


def test_a_normalised_model_goes_on_with_settings_of_raw_observations(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run_of(logs / "logs") / "best_model.zip"
    assert train(tmp_path, "-i", str(model), "--conf-file", "paper") == 2
    assert "best_model.zip was trained on normalised observations, and " in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*"))


def test_tracking_without_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    assert train(tmp_path, "--track") == 2
    assert "--track needs a package that is not installed: pip install wandb" in capsys.readouterr().err


def test_the_package_stays_as_it_was(logs: Path) -> None:
    """Names of task sets are ids of gymnasium only while a command runs."""
    assert "MT3" not in gym.registry
    assert "SoftMod/MT3-v3" in gym.registry


# ------------------------------------------------------------------------- help


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    def text_of(*command: str) -> str:
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main([*command, "--help"]))
        assert not end.value.code
        return capsys.readouterr().out

    general = text_of()
    for command in ("demo", "train", "enjoy", "table"):
        assert re.search(rf"^ +{command} +\S+", general, re.MULTILINE)
    training = text_of("train")
    for name, method in METHODS.items():
        assert re.search(rf"^  {name} +{re.escape(method.title)}$", training, re.MULTILINE)
    for part in ("MT50-Conditioned ", "10 tasks, one goal each", "--optimize-hyperparameters", "--algo METHOD"):
        assert part in training
    assert "{a2c," not in training
    assert "--video FILE.mp4" in text_of("enjoy")


def test_the_config_of_wandb_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a stand-in for wandb, whose place in RL Zoo's script it takes."""
    config: dict[str, Any] = {}
    run = SimpleNamespace(config=SimpleNamespace(setdefaults=lambda more: config.update({**more, **config})))
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **options: config.update(options["config"]) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)  # RL Zoo logs to runs/
    assert train(tmp_path, "--track", "--verbose", "1") == 0
    assert config["saved_hyperparams"]["policy_kwargs"]["preset"] == "deep"
    assert config["env_kwargs"]["horizon"] == 5
    assert "object at 0x" not in str(config)
    shown = capsys.readouterr().out
    for task in MT3:  # in the table of an evaluation
        assert f" {task} " in shown
