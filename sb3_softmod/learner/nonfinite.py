"""What is said and kept of an update that is not finite: the error, and a dump that takes the update again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_softmod.common.errors import ConfigurationError, NonFiniteError
from sb3_softmod.common.files import replacing
from sb3_softmod.learner.options import LearnerState

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


def report(state: LearnerState, failure: Failure, rehearse: Callable[[Failure], str]) -> NonFiniteError:
    """Dump the update that ends a run, and say what happened.

    :param state: with the parameters that the failing stage met
    :param failure: the update
    :param rehearse: takes an update again and says what is not finite
    :return: the error to raise
    """
    message = explain(state, failure, rehearse(failure))
    if state.options.on_nonfinite == "skip":
        message += f" It was the {MOST_IN_A_ROW}th dropped update in a row: this run learns nothing any more."
    path = (state.folder / f"nonfinite-{failure.moment.gradient_step}.pt").absolute()
    try:
        _write(_dump(state, failure), path)
    except OSError as error:
        return NonFiniteError(f"{message} The update could not be dumped to {path}: {error}.")
    return NonFiniteError(f"{message} The update is in {path}: model.replay_dump(path) takes it again.")


def explain(state: LearnerState, failure: Failure, found: str) -> str:
    """What was not finite, where it comes from and what to do."""
    (gradient_step, environment_step, _), stage = failure.moment, failure.stage
    found = found or f"the loss or a gradient of the {stage} was not finite, but is when it is computed again"
    message = f"Gradient step {gradient_step} (environment step {environment_step}): {found}."
    inputs = [name.replace("_", " ") for name, tensor in tensors_of(failure.batch).items() if _broken(tensor)]
    weights = [name for name, parameter in state.policy.named_parameters() if _broken(parameter)]
    if inputs:
        message += f" So do the batch's {' and '.join(inputs)}: look at where those transitions come from."
    elif weights:
        message += f" The parameter {weights[0]!r} was not finite before: go on from an earlier checkpoint."
    else:
        message += " A lower learning_rate, max_grad_norm or a smaller scale of the rewards may help"
        message += '; on_nonfinite="skip" drops such updates.' if state.options.on_nonfinite == "raise" else "."
    applied = "; the critics have learned from this batch already" if stage == "actor" else ""
    return f"{message} From there on nothing of the update was applied{applied}."


def _broken(tensor: Tensor) -> bool:
    return not tensor.isfinite().all()


# ------------------------------------------------------------------------- dumps


#: What a dump of version 0.1.0 does not say.
_OF_OLDER_DUMPS = {"critic_kind": "mse", "critic_target_kind": "min", "policy_delay": 1}


def _settings(state: LearnerState) -> dict[str, Any]:
    """What a model must have in common with a dump."""
    options, surgery = state.options, state.options.gradient_surgery
    return dict(
        policy=type(state.policy).__name__,
        task_names=[str(name) for name in options.task_names],
        critic_kind=options.critic_kind,
        critic_target_kind=options.critic_target_kind,
        value_atoms=getattr(state.policy, "value_atoms", None),
        policy_delay=options.policy_delay,
        loss_weighting=options.loss_weighting,
        gradient_surgery=None if surgery is None else str(surgery),
        gradient_surgery_kwargs=repr(options.gradient_surgery_kwargs) if options.gradient_surgery_kwargs else None,
        gamma=float(options.gamma),
        target_entropy=float(options.target_entropy),
        precision=options.precision,
        device=state.policy.device.type,
        reward_scaling=None if state.reward_scale is None else f"per-task, to {state.options.v_max:g}",
    )


def _temperatures(state: LearnerState) -> dict[str, Tensor | None]:
    """By the names that they have in a dump."""
    return dict(log_ent_coef=state.temperatures.log_alpha, ent_coef_tensor=state.temperatures.alpha)


def _others(state: LearnerState) -> dict[str, Tensor]:
    """What else an update depends on, by the names that it has in a dump; only what this learner has."""
    out = {}
    if state.reward_scale is not None:
        out["largest_returns"] = state.reward_scale.largest
    if state.success_rates is not None:
        out["success_rates"] = state.success_rates
    if state.learned_weights is not None:
        out |= {f"loss_weighting.{name}": value for name, value in state.learned_weights.tensors().items()}
    return out


def _dump(state: LearnerState, failure: Failure) -> dict[str, Any]:
    """The update as plain numbers and tensors, which load without running code."""
    return dict(
        stage=failure.stage,
        **failure.moment._asdict(),
        batch={name: tensor.cpu() for name, tensor in tensors_of(failure.batch).items()},
        parameters=state.policy.state_dict(),
        **{name: None if value is None else value.detach() for name, value in _temperatures(state).items()},
        **_others(state),
        surgery={} if state.surgery is None else state.surgery.state(),
        settings=_settings(state),
        policy_kwargs=json.loads(
            json.dumps(state.policy._get_constructor_parameters(), default=repr)
        ),  # to read; nothing is made of them
    )


def _write(dump: dict[str, Any], path: Path) -> None:
    """Write all of the dump or, with a FileError, nothing."""
    content = BytesIO()  # torch's own errors do not say that a disk is full
    th.save(dump, content)
    with replacing(path) as draft:
        draft.write_bytes(content.getbuffer())


def take_dump(state: LearnerState, path: str | Path) -> Failure:
    """Give a learner the parameters and temperatures of a dump; loading runs no code.

    :param path: ``nonfinite-<gradient step>.pt``
    :return: the dumped update
    :raises ConfigurationError: for another file, or a learner of other options
    """
    try:
        dump = th.load(path, map_location="cpu", weights_only=True)
        batch = ReplayBufferSamples(**{name: tensor.to(state.policy.device) for name, tensor in dump["batch"].items()})
        failure = Failure(dump["stage"], Moment(*(dump[name] for name in Moment._fields)), batch)
        settings, parameters = dump["settings"], dump["parameters"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{path} is not the dump of an update: {error}") from error
    for name, value in _settings(state).items():
        if name == "value_atoms" and name not in settings:  # of an older dump
            continue
        if settings.get(name, _OF_OLDER_DUMPS.get(name)) != value:
            raise ConfigurationError(f"{path} was written with {name}={settings.get(name)!r}, the model has {value!r}.")
    try:
        state.policy.load_state_dict(parameters)
    except RuntimeError as error:
        raise ConfigurationError(f"The model has other parameters than {path}: {error}") from error
    for name, own in _temperatures(state).items():
        if own is not None and dump[name] is not None:
            own.data.copy_(dump[name])
    for name, own in _others(state).items():
        own.copy_(dump[name])
    if state.surgery is not None:
        state.surgery.set_state(dump.get("surgery", {}))
    return failure
