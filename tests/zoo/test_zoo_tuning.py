"""``sb3-softmod train --optimize``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pandas as pd
import pytest
from every_method import EVERY_METHOD
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from point_mass import GOALS, make_point_mass_env
from zoo_runs import TINY, TINY_ENV, TINY_PARAMS

from sb3_softmod import MultiTaskSAC
from sb3_softmod.cli import main
from sb3_softmod.methods import METHODS
from sb3_softmod.policies import POLICIES, policy_options
from sb3_softmod.zoo.tuning import MultiTaskTrialCallback, suggest, to_hyperparams

# The smallest candidate of each kind, so that a trial takes a second.
SMALL: dict[str, Any] = dict(
    learning_rate=1e-3,
    one_minus_gamma=0.01,
    batch_per_task=32,
    max_grad_norm=None,
    loss_weighting="alpha",
    gradnorm_learning_rate=0.01,
    gradnorm_asymmetry=0.5,
    famo_learning_rate=0.02,
    famo_weight_decay=0.001,
    num_layers=2,
    num_modules=2,
    module_dim=64,
    embedding_dim=64,
    num_experts=2,
    num_encoders=4,
    num_parameter_sets=3,
    depth=2,
    width=128,
)


def optimize(folder: Path, *options: str, algo: str = "softmod_deep", steps: int = 60) -> int:
    command = f"train --algo {algo} --env MT3 -f {folder} -n {steps} --conf-file laptop --seed 3 --optimize".split()
    small = ["--no-optim-plots", "--n-startup-trials", "1", *TINY, *options]
    return main([*command, *small, "--env-kwargs", *TINY_ENV, "-params", *TINY_PARAMS])


@pytest.mark.parametrize("algo", ["softmod_deep", "mt_sac"])
def test_two_trials(algo: str, tmp_path: Path) -> None:
    best = tmp_path / "trials"
    assert optimize(tmp_path, "--n-trials", "2", "--optimization-log-path", str(best), algo=algo) == 0
    (report,) = tmp_path.glob(f"{algo}/report_MT3_2-trials-60-tpe-median_*.csv")
    table = pd.read_csv(report)
    assert table["state"].tolist() == ["COMPLETE"] * 2
    assert table["value"].between(0, 1).all()  # a success rate
    for trial in range(2):
        model = MultiTaskSAC.load(best / f"trial_{trial}" / "best_model.zip")
        row = table.loc[trial]
        assert model.batch_size == 3 * row["params_batch_per_task"]
        assert model.gamma == pytest.approx(1 - row["params_one_minus_gamma"])
        assert model.loss_weighting == row["params_loss_weighting"]
        assert model.lr_schedule(1) == pytest.approx(row["params_learning_rate"])
        found: Any = model.policy.network_kwargs
        if algo == "softmod_deep":
            assert found["preset"] == "deep"  # the method's
            assert found["module_dim"] == row["params_module_dim"]
        else:
            assert found == dict(net_arch=[row["params_width"]] * row["params_depth"])
            of_critics: Any = model.policy.critic_options
            assert of_critics == dict(normalization="layer")  # the file's net_arch of the critics gave way
    assert not list(tmp_path.glob(f"{algo}/MT3_*"))  # no run, no folder


def test_processes_share_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at the same time; and a run can take the values of a trial."""
    monkeypatch.chdir(tmp_path)
    options = ["--storage", "study.log", "--study-name", "mine"]
    code = f"from test_zoo_tuning import *; optimize(Path('.'), *{options}, '--n-trials', '1')"
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent / 'helpers'}"}
    workers = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert optimize(tmp_path, *options, "--max-total-trials", "2") == 0  # there is nothing left to do
    storage = JournalStorage(JournalFileBackend("study.log"))
    trials = optuna.load_study(storage=storage, study_name="mine").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2

    command = f"train --algo softmod_deep --env MT3 -f {tmp_path} -n 9 --conf-file laptop --trial-id 1".split()
    tiny = ["--eval-freq", "-1", *options, *TINY]
    assert main([*command, *tiny, "--env-kwargs", *TINY_ENV, "-params", "buffer_size:60", "n_envs:3"]) == 0
    model = MultiTaskSAC.load(tmp_path / "softmod_deep" / "MT3_1" / "MT3.zip")
    assert model.batch_size == 3 * trials[1].params["batch_per_task"]
    assert model.policy.network_kwargs == {
        "preset": "deep",
        **{name: trials[1].params[name] for name in ("num_layers", "num_modules", "module_dim", "embedding_dim")},
    }


class Player(MultiTaskSAC):
    """Reaches the goals of the first ``solved`` tasks when it is evaluated."""

    solved: ClassVar[int]

    def predict(self, observation: Any, *args: Any, deterministic: bool = False, **kwargs: Any) -> tuple[Any, Any]:
        if not deterministic:  # in training
            return super().predict(observation, *args, **kwargs)
        tasks = observation[:, 2:].argmax(1)
        actions = np.clip((GOALS[tasks] - observation[:, :2]) / 0.2, -1, 1)
        actions[tasks >= self.solved] = 0
        return actions, None


def test_the_pruner_sees_the_success_rate() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for solved, pruned, evaluations in ((3, False, 2), (1, True, 1), (4, False, 2)):
        trial = study.ask()
        callback = MultiTaskTrialCallback(make_point_mass_env(4), trial, n_eval_episodes=1, eval_freq=10)
        player = type("Player", (Player,), dict(solved=solved))
        player("MlpPolicy", make_point_mass_env(4), learning_starts=1000, buffer_size=1000).learn(80, callback)
        assert callback.is_pruned == pruned
        assert callback.last_mean_reward == solved / 4  # RL Zoo's name for the objective
        assert study.trials[-1].intermediate_values == dict.fromkeys(range(1, evaluations + 1), solved / 4)
        study.tell(trial, solved / 4)


@pytest.mark.parametrize("algo", EVERY_METHOD)
def test_candidates_of_every_method(algo: str) -> None:
    """What Optuna draws fits the policy."""
    options = policy_options(POLICIES[str(METHODS[algo].policy)])
    own = METHODS[algo].options.get("loss_weighting")
    weighting = own if "loss_weighting" in METHODS[algo].defined_by else None
    study = optuna.create_study()
    for _ in range(3):
        params = suggest(study.ask(), options, weighting)
        assert params.keys() <= SMALL.keys()
    small = suggest(optuna.trial.FixedTrial(SMALL), options, weighting)  # type: ignore[arg-type]
    hyperparams = to_hyperparams(small, num_tasks=4)
    assert hyperparams["batch_size"] == 128
    assert hyperparams["gamma"] == 0.99
    kwargs = {**METHODS[algo].policy_kwargs, **hyperparams.pop("policy_kwargs")}
    model = METHODS[algo].make(make_point_mass_env(4), **{**hyperparams, "policy_kwargs": kwargs})
    assert {*kwargs} - {*METHODS[algo].policy_kwargs} != set() or "net_arch" in kwargs
    if algo == "mt_sac_famo":
        assert model.loss_weighting_kwargs == dict(learning_rate=0.02, weight_decay=0.001)
    if algo == "mt_sac_gradnorm":
        assert model.loss_weighting_kwargs == dict(learning_rate=0.01, asymmetry=0.5)
    assert model.loss_weighting == (weighting or SMALL["loss_weighting"])
    assert np.isfinite(model.predict(np.eye(6, dtype=np.float32)[-4:])[0]).all()
