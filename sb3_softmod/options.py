"""The options of :class:`.MultiTaskSAC`, checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch as th

from sb3_softmod.acceleration import PRECISIONS
from sb3_softmod.buffers import MultiTaskReplayBuffer
from sb3_softmod.errors import ConfigurationError, nearest
from sb3_softmod.gradient_surgery import GRADIENT_SURGERIES
from sb3_softmod.loss_weights import LOSS_WEIGHTINGS
from sb3_softmod.nonfinite import ON_NONFINITE
from sb3_softmod.policies import MultiTaskSACPolicy, SingleTaskPolicy

if TYPE_CHECKING:
    from sb3_softmod.multitask_sac import MultiTaskSAC


def check_options(model: MultiTaskSAC) -> None:
    """Refuse options that no device could serve; those of the device are :func:`.decide`'s.

    :raises ConfigurationError: naming the option, with the nearest names that are known
    """
    for name, value, known in (
        ("loss_weighting", model.loss_weighting, LOSS_WEIGHTINGS),
        ("precision", model.precision, PRECISIONS),
        ("on_nonfinite", model.on_nonfinite, ON_NONFINITE),
    ):
        if value not in known:
            raise ConfigurationError(f"Unknown {name} {value!r}: {nearest(value, known)}")
    if not isinstance(model.compile, bool):
        raise ConfigurationError(f"compile must be True or False, not {model.compile!r}.")
    if not isinstance(model.cuda_graphs, bool) and model.cuda_graphs != "auto":
        raise ConfigurationError(f"cuda_graphs must be 'auto', True or False, not {model.cuda_graphs!r}.")
    if model.max_grad_norm is not None and not model.max_grad_norm > 0:
        raise ConfigurationError(
            f"max_grad_norm must be positive, or None for no clipping, not {model.max_grad_norm!r}."
        )
    if model.gradient_surgery is not None:
        _check_gradient_surgery(model)
    _check_buffer_device(model)


def _check_gradient_surgery(model: MultiTaskSAC) -> None:
    surgery = model.gradient_surgery
    if surgery not in GRADIENT_SURGERIES:
        raise ConfigurationError(f"Unknown gradient_surgery {surgery!r}: {nearest(str(surgery), GRADIENT_SURGERIES)}")
    if not issubclass(model.policy_class, MultiTaskSACPolicy):
        raise ConfigurationError(
            f"gradient_surgery needs a policy of this package, not {model.policy_class.__name__}; MTMlpPolicy "
            "is the plain perceptron."
        )
    if issubclass(model.policy_class, SingleTaskPolicy):
        raise ConfigurationError("The tasks of SingleTaskPolicy share no parameter: gradient_surgery has no use.")
    if not issubclass(model.replay_buffer_class or MultiTaskReplayBuffer, MultiTaskReplayBuffer):
        raise ConfigurationError("gradient_surgery needs the balanced batches of MultiTaskReplayBuffer.")


def _check_buffer_device(model: MultiTaskSAC) -> None:
    try:
        on_cpu = th.device(model.buffer_device).type == "cpu"
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"buffer_device must be a device such as 'cpu' or 'cuda', not {model.buffer_device!r}."
        ) from error
    if not on_cpu and not issubclass(model.replay_buffer_class or MultiTaskReplayBuffer, MultiTaskReplayBuffer):
        raise ConfigurationError(f"buffer_device={model.buffer_device!r} needs MultiTaskReplayBuffer.")
