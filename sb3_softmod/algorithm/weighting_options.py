"""What learned weights of the losses need, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch as th

from sb3_softmod.common.checks import require_choice, require_names
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.learner.learned_weights import LEARNED_WEIGHTINGS, learned_weights
from sb3_softmod.learner.loss_weights import LOSS_WEIGHTINGS
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.networks import MultiTaskNetwork
from sb3_softmod.policies import MultiTaskSACPolicy, SingleTaskPolicy


def check_loss_weighting(given: Mapping[str, Any]) -> None:
    """Refuse an unknown weighting, options that it does not have, and what it cannot work with.

    :param given: the attributes of a model
    :raises ConfigurationError: saying what to do instead
    """
    weighting, options = given["loss_weighting"], given["loss_weighting_kwargs"]
    require_choice("loss_weighting", weighting, LOSS_WEIGHTINGS)
    require_names("loss_weighting_kwargs", options)
    learned_weights(weighting, options, 1, th.device("cpu"))  # refuses options
    if weighting not in LEARNED_WEIGHTINGS:
        return
    what, policy_class = f"loss_weighting={weighting!r}", given["policy_class"]
    if given["num_tasks"] == 1:
        raise ConfigurationError(f"{what} balances tasks against each other, and there is one: leave it out.")
    if given["gradient_surgery"] is not None:
        raise ConfigurationError(
            f"{what} does not go with gradient_surgery={given['gradient_surgery']!r}: both say how much the gradient "
            "of each task counts. Leave one of them out."
        )
    if issubclass(policy_class, SingleTaskPolicy):
        raise ConfigurationError(f"The tasks of SingleTaskPolicy share no parameter: {what} has no use.")
    if not issubclass(given["replay_buffer_class"] or MultiTaskReplayBuffer, MultiTaskReplayBuffer):
        raise ConfigurationError(f"{what} needs the balanced batches of MultiTaskReplayBuffer.")
    if LEARNED_WEIGHTINGS[weighting].reads_norms:
        _check_norms(what, policy_class)
        critic = getattr(given.get("policy"), "critic", None)  # none before the policy is made
        if critic is not None and critic.network.last_shared_layer is None:
            raise ConfigurationError(
                f"{what} measures gradients at the last layer that all tasks share, and old and new tasks of a policy "
                "that was adapted have none: adapt(tasks, loss_weighting='uniform'), or drop the old ones and tune all."
            )


def _check_norms(what: str, policy_class: type) -> None:
    if not issubclass(policy_class, MultiTaskSACPolicy):
        raise ConfigurationError(
            f"{what} needs a policy of this package, not {policy_class.__name__}; MTMlpPolicy is the plain perceptron."
        )
    network = policy_class.network_class
    if network.last_shared_layer is MultiTaskNetwork.last_shared_layer:
        raise ConfigurationError(
            f"{what} measures gradients at the last layer that all tasks share, and {network.__name__} does not say "
            "which that is: give it the property last_shared_layer, see MultiTaskNetwork."
        )
