"""What is said and kept of an update that is not finite: the error, and a dump that takes the update again."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_softmod.common.errors import ConfigurationError, NonFiniteError

if TYPE_CHECKING:
    from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC

OnNonFinite = Literal["raise", "skip"]
ON_NONFINITE: tuple[OnNonFinite, ...] = ("raise", "skip")

#: With "skip", that many dropped updates in a row end the run: it learns nothing any more.
MOST_IN_A_ROW = 100


class Moment(NamedTuple):
    """When an update was taken."""

    gradient_step: int  # from 1
    environment_step: int
    random_state: Tensor  # of the device's generator, before the update


class Failure(NamedTuple):
    """An update that was not finite."""

    stage: str  # that failed: "temperatures", "critic" or "actor"
    moment: Moment
    batch: ReplayBufferSamples


def tensors_of(batch: ReplayBufferSamples) -> dict[str, Tensor]:
    """The tensors of a batch by name; one without discounts has none."""
    return {name: tensor for name, tensor in batch._asdict().items() if tensor is not None}


def report(model: MultiTaskSAC, failure: Failure, rehearse: Callable[[Failure], str]) -> NonFiniteError:
    """Dump the update that ends a run, and say what happened.

    :param model: with the parameters that the failing stage met
    :param failure: the update
    :param rehearse: takes an update again and says what is not finite
    :return: the error to raise
    """
    message = explain(model, failure, rehearse(failure))
    if model.on_nonfinite == "skip":
        message += f" It was the {MOST_IN_A_ROW}th dropped update in a row: this run learns nothing any more."
    name = f"nonfinite-{failure.moment.gradient_step}.pt"
    path = (Path(getattr(getattr(model, "_logger", None), "dir", None) or ".") / name).absolute()
    try:
        _write(_dump(model, failure), path)
    except OSError as error:
        return NonFiniteError(f"{message} The update could not be dumped to {path}: {error}.")
    return NonFiniteError(
        f"{message} The update is in {path}: sb3_softmod.learner.nonfinite.replay_dump(model, path) takes it again."
    )


def explain(model: MultiTaskSAC, failure: Failure, found: str) -> str:
    """What was not finite, where it comes from and what to do."""
    (gradient_step, environment_step, _), stage = failure.moment, failure.stage
    found = found or f"the loss or a gradient of the {stage} was not finite, but is when it is computed again"
    message = f"Gradient step {gradient_step} (environment step {environment_step}): {found}."
    inputs = [name.replace("_", " ") for name, tensor in tensors_of(failure.batch).items() if _broken(tensor)]
    weights = [name for name, parameter in model.policy.named_parameters() if _broken(parameter)]
    if inputs:
        message += f" So do the batch's {' and '.join(inputs)}: look at where those transitions come from."
    elif weights:
        message += f" The parameter {weights[0]!r} was not finite before: go on from an earlier checkpoint."
    else:
        message += " A lower learning_rate, max_grad_norm or a smaller scale of the rewards may help"
        message += '; on_nonfinite="skip" drops such updates.' if model.on_nonfinite == "raise" else "."
    applied = "; the critics have learned from this batch already" if stage == "actor" else ""
    return f"{message} From there on nothing of the update was applied{applied}."


def _broken(tensor: Tensor) -> bool:
    return not tensor.isfinite().all()


# ------------------------------------------------------------------------- dumps


def _settings(model: MultiTaskSAC) -> dict[str, Any]:
    """What a model must have in common with a dump."""
    return dict(
        policy=model.policy_class.__name__,
        task_names=[str(name) for name in model.task_names],
        loss_weighting=model.loss_weighting,
        gradient_surgery=model.gradient_surgery,
        gamma=float(model.gamma),
        target_entropy=float(model.target_entropy),
        precision=model.precision,
        device=model.device.type,
    )


def _dump(model: MultiTaskSAC, failure: Failure) -> dict[str, Any]:
    """The update as plain numbers and tensors, which load without running code."""
    return dict(
        stage=failure.stage,
        **failure.moment._asdict(),
        batch={name: tensor.cpu() for name, tensor in tensors_of(failure.batch).items()},
        parameters=model.policy.state_dict(),
        log_ent_coef=None if model.log_ent_coef is None else model.log_ent_coef.detach(),
        ent_coef_tensor=getattr(model, "ent_coef_tensor", None),
        settings=_settings(model),
        policy_kwargs=json.loads(json.dumps(model.policy_kwargs, default=repr)),  # to read; nothing is made of them
    )


def _write(dump: dict[str, Any], path: Path) -> None:
    """Write all of the dump or, with an OSError, nothing."""
    content = BytesIO()  # torch's own errors do not say that a disk is full
    th.save(dump, content)
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_bytes(content.getbuffer())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def replay_dump(model: MultiTaskSAC, path: str | Path) -> None:
    """Take a dumped update again, in a model that was made with the same arguments; loading runs no code.

    The model gets the dump's parameters and temperatures, and nothing is applied to them. On the CPU the numbers are
    those of the run, to the bit; a GPU may round differently. Returns where this time everything is finite.

    :param model: whose parameters are replaced
    :param path: ``nonfinite-<gradient step>.pt``
    :raises NonFiniteError: as in the run
    :raises ConfigurationError: for another file, or a model of other arguments
    """
    try:
        dump = th.load(path, map_location="cpu", weights_only=True)
        batch = ReplayBufferSamples(**{name: tensor.to(model.device) for name, tensor in dump["batch"].items()})
        failure = Failure(dump["stage"], Moment(*(dump[name] for name in Moment._fields)), batch)
        settings, parameters = dump["settings"], dump["parameters"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{path} is not the dump of an update: {error}") from error
    for name, value in _settings(model).items():
        if settings.get(name) != value:
            raise ConfigurationError(f"{path} was written with {name}={settings.get(name)!r}, the model has {value!r}.")
    try:
        model.policy.load_state_dict(parameters)
    except RuntimeError as error:
        raise ConfigurationError(f"The model has other parameters than {path}: {error}") from error
    for name in ("log_ent_coef", "ent_coef_tensor"):
        if dump[name] is not None:
            getattr(model, name).data.copy_(dump[name])
    model.policy.set_training_mode(True)
    try:
        found = model._learner().finite.rehearse(failure)
    finally:
        model.policy.set_training_mode(False)
    if found:
        raise NonFiniteError(f"{explain(model, failure, found)} The update was read from {path}.")
