"""What ``--optimize`` may vary."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import check_file
from sb3_softmod.evaluation.callback import MultiTaskEvalCallback

#: Sizes of a network by the option that sets them; those that a policy does not know are left out.
_SIZES: dict[str, list[int]] = {
    "num_layers": [2, 3, 4],
    "num_modules": [2, 4, 6],
    "module_dim": [64, 128, 256],
    "embedding_dim": [64, 128, 256, 400],
    "num_experts": [2, 4, 6],
    "num_encoders": [4, 6, 8],
    "num_parameter_sets": [3, 5, 8],
}


#: Options of the learned weights of the losses, from and to, by weighting.
_OF_WEIGHTING: dict[str, dict[str, tuple[float, float]]] = {
    "gradnorm": {"learning_rate": (1e-3, 1e-1), "asymmetry": (1e-2, 2.0)},
    "famo": {"learning_rate": (1e-3, 1e-1), "weight_decay": (1e-4, 1e-1)},
}


def check_storage(storage: str) -> None:
    """Refuse a storage of studies that Optuna cannot open: a file that ends in ``.log``, or the URL of a database."""
    if storage.endswith(".log"):
        check_file(storage)
        return
    try:
        optuna.storages.get_storage(storage)
    except Exception as error:  # of whatever library the URL names
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"--storage {storage} is neither a file that ends in .log nor the URL of a database ({reason})."
        ) from error


def suggest(trial: optuna.Trial, options: list[str], weighting: str | None = None) -> dict[str, Any]:
    """Draw the next candidate.

    :param options: what the policy's ``policy_kwargs`` may hold
    :param weighting: a ``loss_weighting`` that stays, with options that are drawn where it has some; None draws one
    :return: as Optuna names and stores it; :func:`to_hyperparams` makes hyperparameters of it
    """
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.005, 0.05, log=True),
        "batch_per_task": trial.suggest_categorical("batch_per_task", [32, 64, 128, 256]),
        "max_grad_norm": trial.suggest_categorical("max_grad_norm", [None, 1.0, 10.0]),
    }
    if weighting is None:
        params["loss_weighting"] = trial.suggest_categorical(
            "loss_weighting", ["uniform", "alpha", "log_alpha", "success"]
        )
    else:
        for name, (least, most) in _OF_WEIGHTING.get(weighting, {}).items():
            name = f"{weighting}_{name}"
            params[name] = trial.suggest_float(name, least, most, log=True)
    for name, sizes in _SIZES.items():
        if name in options:
            params[name] = trial.suggest_categorical(name, sizes)
    if "net_arch" in options:
        params["depth"] = trial.suggest_int("depth", 2, 4)
        params["width"] = trial.suggest_categorical("width", [128, 256, 400])
    return params


def to_hyperparams(params: dict[str, Any], num_tasks: int) -> dict[str, Any]:
    """Hyperparameters of a candidate.

    :param params: from :func:`suggest`, or read back from a study
    :param num_tasks: M
    """
    policy_kwargs = {name: params[name] for name in _SIZES if name in params}
    if "depth" in params:
        policy_kwargs["net_arch"] = [params["width"]] * params["depth"]
    weighting: dict[str, Any] = {name: params[name] for name in ("loss_weighting",) if name in params}
    for learned, options in _OF_WEIGHTING.items():
        if found := {name: params[f"{learned}_{name}"] for name in options if f"{learned}_{name}" in params}:
            weighting = {"loss_weighting": learned, "loss_weighting_kwargs": found}
    return {
        "learning_rate": params["learning_rate"],
        "gamma": 1 - params["one_minus_gamma"],
        "batch_size": params["batch_per_task"] * num_tasks,
        "max_grad_norm": params["max_grad_norm"],
        **weighting,
        "policy_kwargs": policy_kwargs,
    }


class MultiTaskTrialCallback(MultiTaskEvalCallback):
    """Evaluates a trial; Optuna's objective is the mean success rate, or the mean return where no task reports success.

    :param eval_env: of all tasks
    :param trial: of Optuna, which may prune it after any evaluation
    :param kwargs: those of :class:`.MultiTaskEvalCallback`
    """

    def __init__(self, eval_env: VecEnv, trial: optuna.Trial, **kwargs: Any) -> None:
        super().__init__(eval_env, verbose=0, **kwargs)
        self._trial = trial
        #: Read by RL Zoo, as ``last_mean_reward`` is, its name for the objective.
        self.is_pruned = False

    def _on_step(self) -> bool:
        before = self.num_evaluations
        go_on = super()._on_step()
        if self.num_evaluations > before:
            if np.isfinite(self.last_success_rate):
                self.last_mean_reward = self.last_success_rate
            self._trial.report(self.last_mean_reward, self.num_evaluations)
            self.is_pruned = self._trial.should_prune()
        return go_on and not self.is_pruned
