"""What one gradient is made of the tasks' gradients: by PCGrad, or by any aggregator of TorchJD.

An aggregator (Quinton and Rey 2024, arXiv 2406.16232) makes a vector of a matrix J with a row for each task. Most need
the inner products of the rows alone: these get G = J Jᵀ, and give weights. The actor and each critic have aggregators
of their own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch as th
from torch import Tensor

from sb3_softmod.common.checks import arguments_of, require_number
from sb3_softmod.common.errors import ConfigurationError, nearest
from sb3_softmod.learner.gradient_surgery import combined, inner_products, pcgrad

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator

GradientSurgery: TypeAlias = "str | Aggregator"

#: Of TorchJD's aggregators those that balance tasks, by our names. Of the others some weigh the tasks as they are told
#: (Mean, Sum, Constant), some find broken gradients among good ones (Krum, TrimmedMean), and one has a main task (PCD).
_AGGREGATORS = {
    "aligned_mtl": "AlignedMTL",
    "cagrad": "CAGrad",
    "config": "ConFIG",
    "dualproj": "DualProj",
    "excess_mtl": "ExcessMTL",
    "fairgrad": "FairGrad",
    "graddrop": "GradDrop",
    "gradvac": "GradVac",
    "imtl_g": "IMTLG",
    "mgda": "MGDA",
    "nash_mtl": "FairGrad",
    "random": "Random",
    "upgrad": "UPGrad",
}
GRADIENT_SURGERIES: tuple[str, ...] = ("pcgrad", *_AGGREGATORS)
#: What the authors have: CAGrad's and FairGrad's on MT10 (mtrl_files/run.sh), MGDA's solver (min_norm_solvers.py).
#: Nash-MTL's G w = 1 / w (Navon et al. 2022, arXiv 2202.01017) is FairGrad's equation with alpha 1. TorchJD's NashMTL
#: solves it by ECOS, and keeps the weights of before where that fails, as it did on three small conflicting gradients.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cagrad": {"c": 0.9},
    "fairgrad": {"alpha": 2.0},
    "mgda": {"epsilon": 1e-5, "max_iters": 250},
    "nash_mtl": {"alpha": 1.0},
}
#: Their result is of the size of the tasks' sum, not of their mean, as that of the others and the loss of a batch.
_OF_SUMS = ("PCGrad", "GradVac", "GradDrop", "ConFIG")
#: Their weights do not change where all gradients are scaled. They get gradients of a mean square of 1: some take
#: smaller ones than 0.01 for zero.
_OF_ANY_SCALE = ("PCGrad", "GradVac", "MGDA", "CAGrad", "IMTLG", "AlignedMTL", "UPGrad", "DualProj")
#: They read the gradients, but turn with them: any rows with the same inner products do.
_TURNING = ("NashMTL", "ConFIG", "Random")
#: What the state of an aggregator may consist of.
_NUMBERS = (bool, int, float, np.ndarray, Tensor)


class Surgery:
    """Combines the tasks' gradients; what an aggregator remembers from one step to the next is kept here.

    :param given: one of :data:`GRADIENT_SURGERIES`, or an aggregator of TorchJD, which is copied
    :param options: of a named aggregator, by the arguments of its class; "nash_mtl" has ``max_norm`` (1), the
        length that it shortens its result to
    :param num_tasks: M
    :raises ConfigurationError: where TorchJD is not there, or cannot make or use it
    """

    def __init__(self, given: GradientSurgery, options: Mapping[str, Any] | None, num_tasks: int) -> None:
        self.given, self.options, self.num_tasks = given, options, num_tasks
        own = dict(options or {})
        self._longest = own.pop("max_norm", 1.0) if given == "nash_mtl" else None
        if self._longest is not None:
            require_number("max_norm in gradient_surgery_kwargs", self._longest, above=0)
        self._prototype = _aggregator(given, own, num_tasks)  # None: our own PCGrad
        self._kind = type(self._prototype).__name__
        self._copies: dict[str, Aggregator] = {}  # by owner and member
        self._rows = num_tasks  # of the last gradients
        self._to_continue: dict[str, Tensor] = {}  # the state of those that are not made yet

    def is_of(self, given: GradientSurgery | None, options: Mapping[str, Any] | None, num_tasks: int) -> bool:
        """Whether it was made of these."""
        same = self.given is given or (isinstance(given, str) and self.given == given)
        return same and self.options == options and self.num_tasks == num_tasks

    def __call__(self, owner: str, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """One gradient for each member of an ensemble.

        An aggregator with a memory begins anew where the number of tasks has changed: a batch may lack tasks that no
        env has played yet.

        :param owner: "actor" or "critic"
        :param gradients: ``[rows, E, ...]`` of each parameter, a row for each task of the batch
        :return: ``[E, ...]`` of each parameter; NaN where a gradient is not finite
        :raises ConfigurationError: where an aggregator fails, with what it says
        """
        rows = len(next(iter(gradients.values())))
        if self._prototype is None:
            device = next(iter(gradients.values())).device
            return pcgrad(gradients, th.rand(rows, rows, device=device).argsort(-1))
        if rows != self._rows:
            self._rows, self._copies, self._to_continue = rows, {}, {}
        if self._reads_inner_products():
            gram = inner_products(gradients)
            eps = th.finfo(next(iter(gradients.values())).dtype).eps
            weights = [self._weights(f"{owner}.{i}", each, rows * eps) for i, each in enumerate(gram.cpu())]
            return combined(gradients, th.stack(weights).to(gram.device))
        members = next(iter(gradients.values())).shape[1]
        vectors = [self._vector(f"{owner}.{i}", {k: g[:, i] for k, g in gradients.items()}) for i in range(members)]
        return {name: th.stack([vector[name] for vector in vectors]) for name in gradients}

    def _reads_inner_products(self) -> bool:
        return self._kind in _TURNING or hasattr(self._prototype, "gramian_weighting")

    def _weights(self, key: str, gram: Tensor, eps: float) -> Tensor:
        """The weights of the tasks' gradients, ``[rows]``, of their inner products ``[rows, rows]``, in float64.

        :param eps: how exact these are, relative to the norms
        """
        if not gram.isfinite().all():
            return th.full_like(gram[0], th.nan)
        norms = gram.diagonal().sqrt()
        if not norms.any():
            return th.full_like(norms, 1 / len(gram))
        cosines, roots, inverse_roots = _positive(gram / th.outer(norms, norms).clamp(min=th.finfo().tiny), eps)
        if self._kind in _TURNING:
            # Of rows with these inner products, the vector; as a combination of them.
            rows = norms.unsqueeze(1) * roots
            weights = self._called(key, lambda aggregator: aggregator(rows)) @ inverse_roots
            weights = th.where(norms > 0, weights / norms, 0.0)
        else:
            gram = cosines * th.outer(norms, norms)
            size = gram.diagonal().mean() if self._kind in (*_OF_ANY_SCALE, "FairGrad") else 1.0
            weights = self._called(key, lambda aggregator: aggregator.gramian_weighting(gram / size))
            if self._kind == "FairGrad":
                # w solves G w = w^(-1 / alpha), which its solver does for G of this size alone.
                alpha = float(self._copies[key].alpha)  # type: ignore[arg-type]
                weights = weights * size ** (-alpha / (1 + alpha))
            if self._longest is not None:
                weights = weights * (self._longest / (weights @ gram @ weights).sqrt()).clamp(max=1)
        return weights / len(gram) if self._kind in _OF_SUMS else weights

    def _vector(self, key: str, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of one member, of the gradients ``[rows, ...]`` of its parameters."""
        matrix = th.cat([g.flatten(1) for g in gradients.values()], 1)
        if matrix.isfinite().all():
            vector = self._called(key, lambda aggregator: aggregator(matrix))
        else:
            vector = th.full_like(matrix[0], th.nan)
        if self._kind in _OF_SUMS:
            vector = vector / len(matrix)
        parts = vector.split([g[0].numel() for g in gradients.values()])
        return {name: part.view(g.shape[1:]) for (name, g), part in zip(gradients.items(), parts, strict=True)}

    def _called(self, key: str, call: Callable[[Any], Tensor]) -> Tensor:
        try:
            with th.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of solvers, whose result counts
                if key not in self._copies:
                    self._copies[key] = self._begun(key, call)
                return call(self._copies[key])
        except Exception as error:  # whatever its solver raises
            raise ConfigurationError(
                f"gradient_surgery={_named(self.given)} cannot combine the gradients of {self._rows} tasks ({key}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def _begun(self, key: str, call: Callable[[Any], Tensor]) -> Aggregator:
        """A copy of the aggregator, in the state that it was to go on from."""
        assert self._prototype is not None
        aggregator = copy.deepcopy(self._prototype)
        if self._kind == "NashMTL" and self._rows != self.num_tasks:
            aggregator.n_tasks = self._rows  # type: ignore[assignment]
            aggregator.reset()  # type: ignore[operator]
        known = ((*name.partition("/"), value) for name, value in self._to_continue.items())
        state = {name: value for owner, _, name, value in known if owner == key}
        if state:
            with th.random.fork_rng():
                call(aggregator)  # makes what is no number: a solver, the keys of its memory
            _set_numbers(aggregator, self._prototype, state)
        return aggregator

    def state(self) -> dict[str, Any]:
        """What the aggregators remember, for :meth:`set_state`; empty where they remember nothing."""
        numbers = {
            name: value for name, value in self._to_continue.items() if name.partition("/")[0] not in self._copies
        }
        for key, aggregator in self._copies.items():
            assert self._prototype is not None
            before = dict(_numbers(self._prototype))
            for name, value in _numbers(aggregator):
                if name not in before or not np.array_equal(_host(value), _host(before[name])):
                    numbers[f"{key}/{name}"] = th.as_tensor(_host(value)).clone()
        return dict(aggregator=self._kind, rows=self._rows, numbers=numbers) if numbers else {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; begin anew with an empty state, and with that of another aggregator.

        :param state: of :meth:`state`
        """
        self._copies, self._rows, self._to_continue = {}, self.num_tasks, {}
        if state and state["aggregator"] == self._kind:
            self._rows = state["rows"]
            self._to_continue = {name: value.cpu() for name, value in state["numbers"].items()}

    def __getstate__(self) -> dict[str, Any]:
        """For copies: solvers cannot be copied."""
        return dict(arguments=(self.given, self.options, self.num_tasks), state=self.state())

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__init__(*content["arguments"])  # type: ignore[misc]
        self.set_state(content["state"])


def _aggregator(given: GradientSurgery, options: dict[str, Any], num_tasks: int) -> Aggregator | None:
    """The aggregator that was asked for, which has shown that it can combine M gradients; None for our own PCGrad."""
    if options and (given == "pcgrad" or not isinstance(given, str)):
        what = "PCGrad has no options" if given == "pcgrad" else "an aggregator that is made already has its own"
        raise ConfigurationError(f"gradient_surgery_kwargs={options!r} has no use: {what}.")
    if given == "pcgrad":
        return None
    try:
        from torchjd import aggregation
    except ImportError as error:
        raise ConfigurationError(f"gradient_surgery={_named(given)} needs TorchJD: {_INSTALL}") from error
    if isinstance(given, str):
        aggregator = _made(given, getattr(aggregation, _AGGREGATORS[given]), options)
    else:
        aggregator = copy.deepcopy(given)
    if not isinstance(aggregator, aggregation.Aggregator):
        raise ConfigurationError(f"gradient_surgery must be a name or an Aggregator of TorchJD, not {given!r}.")
    vector = getattr(aggregator, "pref_vector", None)
    if vector is not None and hasattr(aggregator, "gramian_weighting"):
        aggregator.pref_vector = vector.double().cpu()  # as inner products are
    try:
        with th.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy.deepcopy(aggregator)(th.eye(num_tasks, dtype=th.float64 if vector is not None else None))
    except Exception as error:  # whatever a solver raises
        raise ConfigurationError(
            f"gradient_surgery={_named(given)} cannot combine the gradients of {num_tasks} tasks: "
            f"{type(error).__name__}: {error}"
        ) from error
    return aggregator


_INSTALL = 'pip install "sb3-softmod[surgery]".'


def _made(name: str, cls: type[Aggregator], options: dict[str, Any]) -> Aggregator:
    """A named aggregator of TorchJD.

    :raises ConfigurationError: for options that it does not know, or refuses
    """
    known = ["max_norm"] if name == "nash_mtl" else [each for each in arguments_of(cls) if each != "self"]
    for option in options:
        if option not in known:
            raise ConfigurationError(
                f"gradient_surgery_kwargs holds {option!r}, which {name!r} does not take: "
                + (nearest(option, known) if known else "it has no options.")
            )
    given = {**_DEFAULTS.get(name, {}), **options}
    given = {k: th.tensor(v) if isinstance(v, (list, tuple)) else v for k, v in given.items()}  # as YAML has vectors
    try:
        if "projector" in known and given.get("projector") is None:
            from torchjd.linalg import QuadprogProjector

            # What it adds to inner products that rounding made slightly negative: ours are in float64, and are not.
            given["projector"] = QuadprogProjector(reg_eps=1e-9)
        return cls(**given)
    except ImportError as error:
        raise ConfigurationError(f"gradient_surgery={name!r} needs more of TorchJD: {_INSTALL} ({error})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"gradient_surgery_kwargs={options!r} does not go with {name!r}: {error}") from error


def _named(given: GradientSurgery) -> str:
    return repr(given) if isinstance(given, str) else str(given)


def _positive(cosines: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix of cosines without what rounding left below 0 or just above, its root, and that root's inverse.

    Else the pseudo-inverses of some aggregators magnify it.

    :param cosines: ``[rows, rows]``
    :param eps: the size of rounding errors
    """
    eigenvalues, vectors = th.linalg.eigh(cosines)
    there = eigenvalues > eps * eigenvalues[-1]
    roots = th.where(there, eigenvalues, 0.0).sqrt()
    root = vectors * roots @ vectors.T
    inverse = vectors * th.where(there, 1 / roots, 0.0) @ vectors.T
    return (cosines if there.all() else root @ root), root, inverse


def _numbers(aggregator: Aggregator) -> Iterator[tuple[str, Any]]:
    """Settings and state, by name."""
    for path, module in aggregator.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, _NUMBERS) and name != "training":
                yield f"{path}.{name}", value


def _set_numbers(aggregator: Aggregator, prototype: Aggregator, state: Mapping[str, Tensor]) -> None:
    """Let an aggregator be in a state; what that does not hold is as in the prototype."""
    for full_name, now in list(_numbers(aggregator)):
        path, _, name = full_name.rpartition(".")
        if full_name not in state:
            value = getattr(prototype.get_submodule(path), name)
        elif isinstance(now, Tensor):
            value = state[full_name].to(now.device).clone()
        else:
            value = state[full_name].numpy().copy() if isinstance(now, np.ndarray) else state[full_name].item()
        setattr(aggregator.get_submodule(path), name, value)


def _host(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
