"""Networks that were adapted to new tasks: the old tasks compute what they always did, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.networks.base import MultiTaskNetwork, require_positive
from sb3_softmod.networks.tunable import TunableParts, require_tune

#: What a policy says of each group of its tasks, in plain data: how many ``tasks``, and what was tuned for them
#: (``tune``, None for those that the networks were first made for).
TaskGroup = Mapping[str, Any]


class AdaptedNetwork(MultiTaskNetwork):
    """A network of tasks in groups, each of which has a network of the same class.

    The networks of later groups share the parameters of the first one, all but those of each task and those that were
    tuned for the group: nothing that a group learns by itself reaches another. A row of a task is evaluated by the
    network of its group alone, in the shape that this network always had. A row of several tasks is the mean of what
    their groups make of it, weighted by their shares.

    :param groups: a network for each group, of one class and shape
    """

    capturable: ClassVar[bool] = True  # its networks say for themselves, by the class that the policy names

    def __init__(self, groups: Sequence[MultiTaskNetwork]) -> None:
        first = groups[0]
        sizes = [group.num_tasks for group in groups]
        super().__init__(first.input_dim, first.output_dim, sum(sizes), ensemble_size=first.ensemble_size)
        self.sizes = sizes
        self.mixes_tasks = first.mixes_tasks  # type: ignore[misc]
        self.groups = nn.ModuleList(groups)

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        return self._by_group(task, lambda group, own: [group(*_as_alone(inputs, own))])[0]

    def routing(self, inputs: Tensor, task: Tensor) -> list[Tensor]:
        """The routing probabilities, see :meth:`.SoftModularNetwork.routing`; networks of that class alone have them.

        A row of several tasks has the mean of its groups' probabilities.
        """
        return self._by_group(task, lambda group, own: group.routing(*_as_alone(inputs, own)))  # type: ignore[operator]

    def auxiliary_loss(self, losses: Tensor, task: Tensor) -> Tensor | None:
        """The sum of those of all groups."""
        parts = zip(self.groups, task.split(self.sizes, -1), strict=True)
        found = [group.auxiliary_loss(losses, own) for group, own in parts]  # type: ignore[operator]
        known = [loss for loss in found if loss is not None]
        return th.stack(known).sum() if known else None

    def _by_group(self, task: Tensor, evaluate: Callable[[MultiTaskNetwork, Tensor], list[Tensor]]) -> list[Tensor]:
        """Evaluate the groups that have rows, and put their rows together.

        :param evaluate: from a network and its tasks ``[B, M of the group]`` to tensors ``[E, B, ...]``
        """
        tasks = task.split(self.sizes, -1)
        shares = [own.sum(-1) for own in tasks]  # [B], 1 or 0 where a row is of one task
        of_rows = [index for index, share in enumerate(shares) if _may_have_rows(share)] or [0]
        if len(of_rows) == 1:
            (only,) = of_rows
            return evaluate(self.groups[only], tasks[only])  # type: ignore[arg-type]
        total: list[Tensor] = []
        for index in of_rows:
            share, own = shares[index], tasks[index]
            outputs = evaluate(self.groups[index], own / th.where(share > 0, share, 1).unsqueeze(-1))  # type: ignore[arg-type]
            weighted = [_weighted(share, output) for output in outputs]
            total = [a + b for a, b in zip(total, weighted, strict=True)] if total else weighted
        return total


def _as_alone(inputs: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and tasks, laid out in memory as a policy of these tasks alone has them: products of few rows are rounded
    by how far apart the rows are.

    :param inputs: part of observations with the tasks of all groups, or anything contiguous
    :param own: ``[B, M of the group]``
    """
    if inputs.is_contiguous():
        return inputs, own
    observations = th.cat([inputs, own], -1)
    return observations[..., : inputs.shape[-1]], observations[..., inputs.shape[-1] :]


def _weighted(share: Tensor, output: Tensor) -> Tensor:
    """A share ``[B]`` of ``[E, B, ...]``; 0 where the share is, whatever was computed there."""
    share = share.view(-1, *[1] * (output.dim() - 2))
    return th.where(share > 0, share * output, 0)


def _may_have_rows(share: Tensor) -> bool:
    """Whether some row has a share; where nobody can look without waiting, or what is seen would be taken for always
    (compiled, or traced for a file), it may.
    """
    if share.is_cuda or th.compiler.is_compiling() or th.jit.is_tracing():
        return True
    try:
        return bool(share.any())
    except RuntimeError:  # under vmap, as of gradient surgery
        return True


def make_network(
    network_class: type[MultiTaskNetwork],
    input_dim: int,
    output_dim: int,
    num_tasks: int,
    groups: Sequence[TaskGroup] | None,
    **kwargs: Any,
) -> MultiTaskNetwork:
    """A network, or one of several groups of tasks, with what does not learn frozen.

    :param groups: None for a network that was not adapted
    :param kwargs: options of the network
    """
    if groups is None:
        return network_class(input_dim, output_dim, num_tasks, **kwargs)
    parts, tune = TunableParts.of(network_class), groups[-1]["tune"]
    made = [parts.split(network_class(input_dim, output_dim, group["tasks"], **kwargs)) for group in groups]
    for network, group in zip(made[1:], groups[1:], strict=True):
        _share(network, made[0], parts, group["tune"])
    whole = made[0] if len(made) == 1 else AdaptedNetwork(made)
    if tune != "all":
        whole.requires_grad_(False)
        for name in parts.tuned(made[-1], tune):
            made[-1].get_parameter(name).requires_grad_(True)
    return whole


def _share(network: MultiTaskNetwork, base: MultiTaskNetwork, parts: TunableParts, tune: str) -> None:
    """Put the parameters of another network in place of those that are not of a task, nor tuned."""
    tuned = parts.tuned(network, tune)
    for path, module in network.named_modules():
        for name in list(module._parameters):
            full = f"{path}.{name}" if path else name
            if parts.axis_of(full) is None and full not in tuned:
                module._parameters[name] = base.get_submodule(path)._parameters[name]


def groups_of(network: Any) -> list[MultiTaskNetwork]:
    """The networks of all groups of a network."""
    return list(network.groups) if isinstance(network, AdaptedNetwork) else [network]  # type: ignore[arg-type]


@th.no_grad()
def begin_from(network: nn.Module, old: nn.Module, tune: str, rows: Sequence[int] | str) -> None:
    """Give an adapted network what the network that it came from has learned.

    :param network: of the groups of ``old`` and a new one; or of the new group alone
    :param old: as it was; it is not changed
    :param tune: what is tuned for the new group
    :param rows: what the new tasks begin as: ``[K]``, tasks of the first group, by index; "mean", of all of these; or
        "fresh": as they were drawn, and so what is tuned for them
    """
    news, olds = groups_of(network), groups_of(old)
    parts = TunableParts.of(type(olds[0]))
    given = [_split_parameters(each, parts) for each in olds]
    for group, parameters in zip(news[:-1], given, strict=False):
        for name, parameter in group.named_parameters(remove_duplicate=False):
            parameter.copy_(parameters[name])
    tuned = parts.tuned(news[-1], tune)
    for name, parameter in news[-1].named_parameters(remove_duplicate=False):
        axis, source = parts.axis_of(name), given[0][name]
        if rows == "fresh" and (axis is not None or name in tuned):
            continue
        if axis is None:
            parameter.copy_(source)
        elif rows == "mean":
            parameter.copy_(source.mean(axis, keepdim=True).expand_as(parameter))
        else:
            parameter.copy_(source.index_select(axis, th.as_tensor(rows, device=source.device)))


def _split_parameters(network: MultiTaskNetwork, parts: TunableParts) -> dict[str, Tensor]:
    """The parameters of a network by the names that they have where layers are split."""
    found: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    for layer in parts.reads_task:
        if (weight := found.get(f"{layer}.weight")) is not None:
            found[f"{layer}.state_weight"] = weight[..., : -network.num_tasks]
            found[f"{layer}.task_weight"] = weight[..., -network.num_tasks :]
    return found


def check_groups(
    groups: Any, num_tasks: int, network_class: type[MultiTaskNetwork], owner: str
) -> list[dict[str, Any]] | None:
    """Refuse what are no groups of a policy's tasks.

    :param owner: the name of the policy
    :return: them, as plain data
    :raises ConfigurationError: saying what is wrong
    """
    if groups is None:
        return None
    named = isinstance(groups, (list, tuple)) and all(
        isinstance(group, Mapping) and set(group) == {"tasks", "tune"} for group in groups
    )
    if not named or not groups:
        raise ConfigurationError(f"groups must be a list of dict(tasks=..., tune=...), not {groups!r}.")
    for index, group in enumerate(groups):
        require_positive(**{"tasks of a group": group["tasks"]})
        if index or len(groups) == 1:
            require_tune(group["tune"], network_class, owner)
    if sum(group["tasks"] for group in groups) != num_tasks:
        raise ConfigurationError(f"The groups {groups!r} are not of {num_tasks} tasks.")
    return [dict(group) for group in groups]
