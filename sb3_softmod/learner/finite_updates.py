"""Keeps updates that are not finite out of parameters and optimizers; on a GPU without waiting for it.

An update has three stages: temperatures, critic, actor. After the backward pass of each, :class:`Watch` tests what it
gave; from the first stage on that is not finite, nothing of the update is applied: no optimizer's step, no step of the
target critics. The temperatures step last, so that they stay whichever stage fails; only where the actor fails have the
critics learned from the batch already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_softmod.common.errors import NonFiniteError
from sb3_softmod.common.task_observation import split
from sb3_softmod.learner.nonfinite import MOST_IN_A_ROW, Failure, Moment, explain, report, take_dump, tensors_of
from sb3_softmod.learner.options import LearnerState

#: Of an update, in order.
STAGES = ("temperatures", "critic", "actor")

#: Updates after which a GPU is asked whether they were finite.
READ_EVERY = 100

NamedParameters = list[tuple[str, Tensor]]


class Tally(NamedTuple):
    """What a :class:`Watch` counted."""

    over: int  # 1 once the run has to end; nothing is applied or counted after that
    stage: int  # that the last dropped update failed at
    in_a_row: int  # dropped updates up to the last one
    dropped: int  # updates since the last reading
    before: int  # updates since the last reading, up to the one that ends the run


class Watch:
    """Tests each stage of an update, and applies it where it and the stages before it are finite.

    All but :meth:`read` is arithmetic on the device, in place, so that a CUDA graph can hold it.

    :param device: where the learner is
    :param most_in_a_row: that many dropped updates in a row end the run
    :param at_once: the host looks before each optimizer's step; otherwise it never waits for the device, and the
        optimizers are fused Adams, which take the number that tells whether to step from the device
    """

    def __init__(self, device: th.device, most_in_a_row: int, at_once: bool) -> None:
        self.at_once = at_once
        #: 1 from the first stage of this update on that is not finite, 0 before.
        self.dropping = th.zeros((), device=device)
        #: A batch: that of the update that ended the run or, ``at_once``, that was dropped last.
        self.kept: dict[str, Tensor] = {}
        self._most_in_a_row = most_in_a_row
        self._failed = th.zeros(len(STAGES), device=device)
        self._tally = th.zeros(len(Tally._fields), device=device)

    def begin(self) -> None:
        """Begin an update."""
        self._failed.zero_()
        self.dropping.copy_(self._tally[0])

    def test(self, stage: str, values: dict[str, Tensor], parameters: NamedParameters, samples: Tensor) -> None:
        """Test a stage after its backward pass.

        :param stage: one of :data:`STAGES`
        :param values: its loss, and what else has to be finite, by name
        :param parameters: those with gradients
        :param samples: ``[B]``, the loss of each sample; for reports alone
        """
        gradients = [p.grad for _, p in parameters if p.grad is not None]
        # Euclidean, since Adam squares: where the norm is finite, so is every square.
        norms = th._foreach_norm(gradients) if gradients else ()
        total = th.stack([*norms, *(value.detach().sum() for value in values.values())]).sum()
        failed = self._failed[STAGES.index(stage)]
        failed.copy_(total.isfinite().logical_not_())
        th.maximum(self.dropping, failed, out=self.dropping)

    def step(self, optimizer: th.optim.Optimizer) -> None:
        """Step, unless this update is being dropped."""
        if not self.at_once:
            optimizer.found_inf = self.dropping  # type: ignore[attr-defined]  # where 1, Adam leaves all as it is
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif not self.dropping:
            optimizer.step()

    def move(self, tensors: list[Tensor], towards: list[Tensor], share: float) -> None:
        """Move tensors a share of the way towards others, unless the last update was dropped."""
        if not self.at_once:
            change = th._foreach_sub(towards, tensors)
            th._foreach_mul_(change, share * (1 - self.dropping))
            th._foreach_add_(tensors, change)
        elif not self.dropping:
            th._foreach_lerp_(tensors, towards, share)

    def end(self, batch: ReplayBufferSamples) -> None:
        """End an update."""
        over, stage, in_a_row, dropped, before = self._tally.unbind()
        if self.at_once and not self.dropping:  # the rest would come to the same, but takes its time
            in_a_row.zero_()
            return
        failed = self._failed.amax() * (1 - over)
        in_a_row.add_(1).mul_(failed)
        dropped.add_(failed)
        stage.copy_(th.where(failed > 0, self._failed.argmax(), stage))
        ends = in_a_row >= self._most_in_a_row
        th.maximum(over, ends, out=over)
        before.add_(1 - over)
        tensors = tensors_of(batch)
        if self.at_once:
            self.kept = tensors
            return
        if [t.shape for t in self.kept.values()] != [t.shape for t in tensors.values()]:
            self.kept = {name: th.zeros_like(tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            th.where(ends, tensor, self.kept[name], out=self.kept[name])

    def in_a_row(self) -> int:
        """How many updates up to the last one were dropped; waits for the device."""
        return int(self._tally[Tally._fields.index("in_a_row")])

    def set_in_a_row(self, count: int) -> None:
        """Go on counting from there."""
        self._tally[Tally._fields.index("in_a_row")] = count

    def read(self) -> Tally:
        """What was counted; waits for the device."""
        tally = Tally(*map(int, self._tally.tolist()))
        # A run that had to end is reported, and may be tried again.
        self._tally[0 if tally.over else Tally._fields.index("dropped") :].zero_()
        return tally


class Rehearsal:
    """In the place of a :class:`Watch`: an update is taken again, but never applied, and one of its stages looked at.

    :param task_names: of all M tasks
    :param failure: what is taken again
    """

    def __init__(self, task_names: Sequence[str], failure: Failure) -> None:
        self._names = task_names
        self._failure = failure

    def begin(self) -> None:
        """Begin an update."""

    def step(self, optimizer: th.optim.Optimizer) -> None:
        """Do not step."""

    def end(self, batch: ReplayBufferSamples) -> None:
        """End an update."""

    def test(self, stage: str, values: dict[str, Tensor], parameters: NamedParameters, samples: Tensor) -> None:
        """Look at the stage that failed; arguments as in :meth:`Watch.test`.

        :raises Seen: at that stage
        """
        if stage != self._failure.stage:  # critics that have learned already may fail where they did not before
            return
        task = split(self._failure.batch.observations, len(self._names))[1]  # [B, M]
        for name, value in values.items():
            if not value.isfinite().all():
                raise Seen(f"the {name} holds NaN or infinity{self._whose(task, samples, value)}")
        for name, parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and not gradient.norm().isfinite():
                how = "is too large to be squared" if gradient.isfinite().all() else "holds NaN or infinity"
                raise Seen(f"the gradient of {name!r} {how}{self._whose(task, samples, gradient)}")
        raise Seen("")

    def _whose(self, task: Tensor, samples: Tensor, value: Tensor) -> str:
        """Whose samples a value is not finite for; else, where it has a number for each task, which those are."""
        bad = ~samples.isfinite()
        if bad.all():
            return ", for every sample of every task"
        found, of = (task.T @ bad.float()).tolist(), task.sum(0).tolist()
        shares = [
            f"{f:.0f} of {o:.0f} samples of task {t!r}" for t, f, o in zip(self._names, found, of, strict=True) if f
        ]
        if not shares and value.shape == (len(self._names),):
            shares = [f"task {t!r}" for t, ok in zip(self._names, value.isfinite().tolist(), strict=True) if not ok]
        more = f" and {len(shares) - 5} more tasks" if len(shares) > 5 else ""
        return f", for {', '.join(shares[:5])}{more}" if shares else ", though the loss of every sample is finite"


class Seen(Exception):
    """Ends a :class:`Rehearsal`; its only argument says what was found, or is empty."""


class FiniteUpdates:
    """The updates of a learner, and what the host does about those that are not finite.

    :param state: whose ``on_nonfinite`` says what that is
    :param optimizers: all of the learner, prepared for the device
    :param update: takes an update of some batch and gradient step as it is, never recorded
    :param dropped: how many updates were not finite before
    """

    def __init__(
        self,
        state: LearnerState,
        optimizers: Sequence[th.optim.Optimizer],
        update: Callable[[ReplayBufferSamples, int], Any],
        dropped: int = 0,
    ) -> None:
        self._state, self._update, self._device = state, update, state.policy.device
        #: How many updates were not finite and therefore dropped, as far as the host has looked.
        self.dropped = dropped
        most_in_a_row = MOST_IN_A_ROW if state.options.on_nonfinite == "skip" else 1
        self.watch = Watch(self._device, most_in_a_row, at_once=host_decides(self._device, optimizers))
        #: What an update asks at each stage.
        self.inspector: Watch | Rehearsal = self.watch
        self._moments: list[Moment] = []  # of the updates since the last check

    def moment(self, gradient_step: int, environment_step: int) -> Moment:
        """Now, before an update."""
        return Moment(gradient_step, environment_step, _random_state(self._device))

    def taken(self, moment: Moment) -> None:
        """Take note of an update; the host looks at it now or, where it does not wait, every 100 updates.

        :param moment: when it was taken
        :raises NonFiniteError: see :meth:`check`
        """
        self._moments.append(moment)
        if self.watch.at_once or len(self._moments) == READ_EVERY:
            self.check()

    def check(self) -> None:
        """Count the updates that were dropped since the last check; waits for the device.

        :raises NonFiniteError: if the run has to end, with a dump
        """
        tally = self.watch.read()
        moments, self._moments = self._moments, []
        if not tally.dropped:
            return
        first = not self.dropped
        self.dropped += tally.dropped
        if tally.over:
            raise report(self._state, self._failure(tally, moments[tally.before]), self.rehearse)
        if not first:
            return
        what = f"{tally.dropped} of the last {len(moments)} updates were not finite."
        if self.watch.at_once:
            failure = self._failure(tally, moments[-1])
            what = explain(self._state, failure, self.rehearse(failure))
        warnings.warn(
            f'{what} on_nonfinite="skip" goes on; train/nonfinite_updates counts these updates.', stacklevel=2
        )

    def replay(self, path: str | Path) -> None:
        """Take a dumped update again, see :meth:`.MultiTaskSAC.replay_dump`.

        :raises NonFiniteError: as in the run
        :raises ConfigurationError: for another file, or a learner of other options
        """
        failure = take_dump(self._state, path)
        self._state.policy.set_training_mode(True)
        try:
            found = self.rehearse(failure)
        finally:
            self._state.policy.set_training_mode(False)
        if found:
            message = explain(self._state, failure, found)
            raise NonFiniteError(f"{message} The update was read from {path}.")

    def _failure(self, tally: Tally, moment: Moment) -> Failure:
        return Failure(STAGES[tally.stage], moment, ReplayBufferSamples(**self.watch.kept))

    def rehearse(self, failure: Failure) -> str:
        """Take an update again, with the parameters that its failing stage met, and apply nothing.

        :param failure: the update
        :return: what is not finite; empty if everything is
        """
        now, surgery = _random_state(self._device), self._state.surgery
        remembered = None if surgery is None else surgery.state()
        _set_random_state(self._device, failure.moment.random_state)
        self.inspector = Rehearsal(self._state.options.task_names, failure)
        try:
            self._update(failure.batch, failure.moment.gradient_step)
        except Seen as seen:
            return str(seen)
        finally:
            self.inspector = self.watch
            _set_random_state(self._device, now)
            if surgery is not None and remembered is not None:
                surgery.set_state(remembered)
        return ""


def host_decides(device: th.device, optimizers: Sequence[th.optim.Optimizer]) -> bool:
    """Whether the host looks at each update; only a fused Adam on a GPU can be told on the device not to step."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return device.type != "cuda" or not all(group.get("fused") for group in groups)


def _random_state(device: th.device) -> Tensor:
    return th.cuda.get_rng_state(device) if device.type == "cuda" else th.get_rng_state()


def _set_random_state(device: th.device, state: Tensor) -> None:
    if device.type == "cuda":
        th.cuda.set_rng_state(state, device)
    else:
        th.set_rng_state(state)
