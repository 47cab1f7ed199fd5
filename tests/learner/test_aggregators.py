"""Gradient surgery by TorchJD: each aggregator against its paper, its memory in files, and what is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference_surgery as reference
import torch as th
from point_mass import make_point_mass_env
from resumable_run import everything, make_env, make_model, never
from torch import Tensor
from torchjd.aggregation import CAGrad, GradVac, Krum, NashMTL, PCGrad, UPGrad

from sb3_softmod import ConfigurationError, MultiTaskSAC, SoftModSAC
from sb3_softmod.learner.aggregators import GRADIENT_SURGERIES, Surgery
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback
from sb3_softmod.saving.plain_models import save_plain

NAMES = [name for name in GRADIENT_SURGERIES if name != "pcgrad"]
#: Of two and of three tasks, without and with conflicts.
GRADIENTS: dict[str, list[list[float]]] = {
    "two agree": [[1.0, 0.2, 0.3, -0.1], [0.4, 1.0, -0.2, 0.5]],
    "two conflict": [[1.0, 0.2, 0.3, -0.1], [-0.9, 0.8, 0.1, 0.4]],
    "three agree": [[1.0, 0.2, 0.3, 0.1], [0.4, 1.0, 0.1, 0.5], [0.3, 0.2, 1.2, 0.4]],
    "three conflict": [[1.0, 0.2, 0.3, -0.1], [-0.9, 0.8, 0.1, 0.4], [-0.5, -0.9, 0.6, 0.2]],
}
#: Those that are functions of the gradients alone; PCGrad's kind sums over the tasks, ours are means.
DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "aligned_mtl": reference.aligned_mtl,
    "config": lambda J: reference.config(J) / len(J),
    "dualproj": reference.dualproj,
    "fairgrad": partial(reference.fairgrad, alpha=2.0),
    "imtl_g": reference.imtl_g,
    "mgda": reference.mgda,
    "nash_mtl": reference.nash_mtl,
    "upgrad": reference.upgrad,
}
EXACTLY: dict[str, dict[str, Any]] = {"mgda": dict(epsilon=1e-9, max_iters=10_000)}


def matrix(which: str) -> Tensor:
    return th.tensor(GRADIENTS[which], dtype=th.float64)


def combine(surgery: Surgery, *matrices: Tensor) -> list[Tensor]:
    """The gradients of an ensemble's members, each from its matrix, in parameters of two shapes."""
    both = th.stack(matrices, 1)  # [M, E, P]
    gradients = {"a": both[..., :1], "b": both[..., 1:].unflatten(-1, (1, -1))}
    found = surgery("critic", gradients)
    assert {name: g.shape for name, g in found.items()} == {name: g.shape[1:] for name, g in gradients.items()}
    return [th.cat([found["a"][i], found["b"][i].flatten()]) for i in range(len(matrices))]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_is_as_its_paper_defines_it(name: str, scale: float) -> None:
    for number in ("two", "three"):
        matrices = [scale * matrix(f"{number} {what}") for what in ("agree", "conflict")]
        surgery = Surgery(name, EXACTLY.get(name), len(matrices[0]))
        for J, found in zip(matrices, combine(surgery, *matrices), strict=True):
            expected = DEFINITIONS[name](J)
            assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("which", GRADIENTS)
def test_cagrad(which: str) -> None:
    """Of the steps of that length the one that does most for the worst task; no nearer, for TorchJD's solver stops
    where its objective is exact to 1e-8, and weights to 1e-4."""
    J, c = matrix(which), 0.4
    mean = J.mean(0)
    expected = reference.cagrad(J, c)
    (found,) = combine(Surgery("cagrad", dict(c=c), len(J)), J)
    assert (found - mean).norm() == pytest.approx(c * float(mean.norm()), abs=1e-6)
    assert (J @ found).min() == pytest.approx(float((J @ expected).min()), abs=1e-4)
    assert (found - expected).norm() <= 2e-4


def test_those_that_draw() -> None:
    """By torch's generator."""
    J = matrix("three conflict")
    th.manual_seed(3)
    (found,) = combine(Surgery("random", None, 3), J)
    th.manual_seed(3)
    th.testing.assert_close(found, th.randn(3, dtype=th.float64).softmax(0) @ J, rtol=0, atol=1e-6)
    th.manual_seed(3)
    (found,) = combine(Surgery("graddrop", None, 3), J)
    th.manual_seed(3)
    th.testing.assert_close(found, reference.graddrop(J, th.rand(4, dtype=th.float64)) / 3, rtol=0, atol=1e-6)


def test_those_that_remember() -> None:
    """Each member by itself, from one step to the next."""
    steps = [
        matrix("three conflict"),
        matrix("three agree"),
        matrix("three conflict") * th.tensor([[1.0], [3.0], [1.0]]),
    ]
    surgery = Surgery("excess_mtl", None, 3)
    for number in range(1, 4):
        first, second = combine(surgery, steps[number - 1], steps[-number])
        th.testing.assert_close(second, excess_of(steps[::-1][:number]), rtol=0, atol=1e-6)
        th.testing.assert_close(first, excess_of(steps[:number]), rtol=0, atol=1e-6)
    surgery, targets = Surgery("gradvac", None, 3), th.zeros(3, 3, dtype=th.float64)
    for seed, J in enumerate(steps):
        th.manual_seed(seed)
        (found,) = combine(surgery, J)
        th.manual_seed(seed)
        others = [[j for j in range(3) if j != i] for i in range(3)]
        orders = [[other[k] for k in th.randperm(2)] for other in others]
        th.testing.assert_close(found, reference.gradvac(J, targets, orders) / 3, rtol=0, atol=1e-6)


def excess_of(steps: list[Tensor]) -> Tensor:
    return reference.excess_mtl(steps)


@pytest.mark.parametrize("name", GRADIENT_SURGERIES)
def test_gradients_that_vanish_or_are_not_finite(name: str) -> None:
    surgery = Surgery(name, None, 3)
    zero, some = th.zeros(3, 5), th.randn(3, 5, generator=th.Generator().manual_seed(0))
    none, one, found = combine(surgery, zero, th.cat([zero[:1], some[1:]]), some)
    assert th.equal(none, zero[0])
    assert one.isfinite().all()
    assert found.isfinite().all()
    assert found.dtype == th.float32
    broken = some.clone()
    broken[1, 2] = th.nan
    assert combine(surgery, broken, some, some)[0].isnan().any()
    assert all(each.isfinite().all() for each in combine(surgery, some, some, some))


def test_linearly_dependent_gradients_of_float32() -> None:
    """Rounding would make a direction of what is none."""
    some = th.randn(3, 1000, generator=th.Generator().manual_seed(0))
    J = th.cat([some, some[:1] + some[1:2], 3 * some[2:]])
    for name in ("config", "aligned_mtl", "upgrad", "imtl_g"):
        (found,) = combine(Surgery(name, None, 5), J)
        (expected,) = combine(Surgery(name, None, 5), J.double())
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name


def test_an_object_is_as_its_name() -> None:
    J = matrix("three conflict")
    for name, options, made in (("cagrad", dict(c=0.5), CAGrad(0.5)), ("gradvac", dict(beta=0.1), GradVac(0.1))):
        both = []
        for surgery in (Surgery(name, options, 3), Surgery(made, None, 3)):
            th.manual_seed(0)
            both.append(combine(surgery, J)[0])
        assert th.equal(*both)
    th.manual_seed(0)
    (theirs,) = combine(Surgery(PCGrad(), None, 2), J[:2])
    (ours,) = combine(Surgery("pcgrad", None, 2), J[:2])
    th.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)  # of two tasks there is one order only
    preferring = UPGrad(th.tensor([0.7, 0.2, 0.1]))
    th.testing.assert_close(
        combine(Surgery(preferring, None, 3), J)[0],
        combine(Surgery("upgrad", dict(pref_vector=[0.7, 0.2, 0.1]), 3), J)[0],
        rtol=0,
        atol=1e-3,  # of what TorchJD's projector adds to the inner products by itself
    )


def test_a_batch_that_lacks_tasks() -> None:
    J = matrix("three conflict")
    for given in ("nash_mtl", "cagrad", "excess_mtl", NashMTL(3)):
        surgery = Surgery(given, None, 3)
        combine(surgery, J)
        (found,) = combine(surgery, J[:2])
        (expected,) = combine(Surgery(NashMTL(2) if isinstance(given, NashMTL) else given, None, 2), J[:2])
        th.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("given", ["gradvac", "excess_mtl", NashMTL(3)], ids=str)
def test_copies_and_states_go_on_alike(given: Any) -> None:
    J = matrix("three conflict")
    surgery = Surgery(given, None, 3)
    for scale in (1.0, 2.0):
        combine(surgery, J, scale * J)
    state = surgery.state()
    again = Surgery(given, None, 3)
    again.set_state(state)
    results = []
    for each in (surgery, copy.deepcopy(surgery), again):
        th.manual_seed(0)
        results.append(combine(each, J + 0.1, J) + combine(each, J, J - 0.1))
    for other in results[1:]:
        assert all(map(th.equal, results[0], other))
    another = Surgery("upgrad", None, 3)
    another.set_state(state)  # begins anew
    assert another.state() == {}


def test_each_of_many_members_goes_on_from_its_own_memory() -> None:
    """The eleventh's name begins as the second's."""
    members = th.randn(11, 3, 4, generator=th.Generator().manual_seed(0))
    surgery, again = (Surgery("gradvac", dict(beta=0.5), 3) for _ in range(2))
    combine(surgery, *members)
    again.set_state(surgery.state())
    results = []
    for each in (surgery, again):
        th.manual_seed(0)
        results.append(combine(each, *members.flip(-1)))
    assert all(map(th.equal, *results))


# ------------------------------------------------------------------------------------------------ in a training


@pytest.mark.parametrize("given", [*NAMES, NashMTL(3, optim_niter=2)], ids=str)
def test_goes_on_as_without_a_break(given: Any, tmp_path: Path) -> None:
    """Trained, saved with checkpoints, loaded and resumed, bit for bit."""
    alone = make_model(make_env(), gradient_surgery=given)
    before = {name: p.detach().clone() for name, p in alone.policy.named_parameters()}
    alone.learn(16 * 3, CheckpointCallback(tmp_path, save_freq=10))
    assert alone._n_updates == 12
    assert all(p.isfinite().all() and not th.equal(p, before[name]) for name, p in alone.policy.named_parameters())
    expected = everything(alone)
    model = SoftModSAC.resume(sorted((tmp_path / "checkpoints").glob("[0-9]*"))[0], make_env())
    assert model.num_timesteps < alone.num_timesteps
    model.learn(callback=never())
    assert everything(model) == expected


def test_files_have_the_memory(tmp_path: Path) -> None:
    """With ``safe=True`` as without; another aggregator, or a file without, begins anew."""
    model = make_model(make_env(), gradient_surgery="gradvac")
    model.learn(10 * 3)
    memory = model.surgery_state["numbers"]
    assert {name.partition(".")[0] for name in memory} == {"actor", "critic"}
    model.save(tmp_path / "model")
    safe: dict[str, Any] = dict(safe=True, policy="SoftModPolicy")
    for options in ({}, safe):
        loaded = SoftModSAC.load(tmp_path / "model", env=make_env(), **options)
        found = loaded.surgery_state["numbers"]
        assert found.keys() == memory.keys()
        assert all(th.equal(found[name], memory[name]) for name in memory)
    other = SoftModSAC.load(tmp_path / "model", env=make_env(), gradient_surgery="mgda")
    assert not other.learn(10 * 3).surgery_state
    copied = copy.deepcopy(model)
    assert all(th.equal(copied.surgery_state["numbers"][name], memory[name]) for name in memory)
    save_plain(model, tmp_path / "plain")
    assert not SoftModSAC.load(tmp_path / "plain").surgery_state


def test_an_object_in_a_file(tmp_path: Path) -> None:
    model = make_model(make_env(), gradient_surgery=CAGrad(0.5))
    model.save(tmp_path / "model")
    assert SoftModSAC.load(tmp_path / "model").gradient_surgery.c == 0.5  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match=r"safe=True\) needs gradient_surgery=.*pickled"):
        SoftModSAC.load(tmp_path / "model", env=make_env(), policy="SoftModPolicy", safe=True)
    options: dict[str, Any] = dict(policy="SoftModPolicy", safe=True, gradient_surgery=CAGrad(0.5))
    SoftModSAC.load(tmp_path / "model", env=make_env(), **options).learn(10 * 3)


def test_what_is_changed_counts_from_the_next_step_on() -> None:
    model = make_model(make_env(), gradient_surgery="gradvac")
    model.learn(10 * 3)
    assert model.surgery_state
    model.gradient_surgery = "mgda"
    model.learn(5 * 3, reset_num_timesteps=False)
    assert not model.surgery_state
    model.gradient_surgery_kwargs = dict(epsilon=-1.0)
    with pytest.raises(ConfigurationError, match="epsilon must be positive"):
        model.learn(5 * 3, reset_num_timesteps=False)


# --------------------------------------------------------------------------------------------------- refusals


def make(gradient_surgery: Any, **kwargs: Any) -> MultiTaskSAC:
    return MultiTaskSAC("MTMlpPolicy", make_point_mass_env(3), gradient_surgery=gradient_surgery, **kwargs)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("cargad", None, "Unknown gradient_surgery 'cargad': did you mean 'cagrad'"),
        (3, None, "gradient_surgery must be a name or an Aggregator of TorchJD, not 3"),
        (th.nn.Linear(1, 1), None, "gradient_surgery must be a name or an Aggregator of TorchJD, not Linear"),
        ("cagrad", dict(C=1), "holds 'C', which 'cagrad' does not take: (did you mean|known are) 'c'"),
        ("cagrad", dict(c=-1), "does not go with 'cagrad': c must be non-negative"),
        ("imtl_g", dict(c=1), "which 'imtl_g' does not take: it has no options"),
        ("nash_mtl", dict(max_norm=0), "max_norm in gradient_surgery_kwargs must be positive"),
        ("upgrad", dict(pref_vector=[1.0, 2.0]), "'upgrad' cannot combine the gradients of 3 tasks: "),
        (NashMTL(4), None, "cannot combine the gradients of 3 tasks: "),
        (Krum(2), None, "cannot combine the gradients of 3 tasks: "),
        ("pcgrad", dict(c=1), "has no use: PCGrad has no options"),
        (CAGrad(0.5), dict(c=1), "has no use: an aggregator that is made already has its own"),
        (None, dict(c=1), "has no use without gradient_surgery"),
        ("cagrad", [1], "gradient_surgery_kwargs must map names to values"),
    ],
)
def test_what_cannot_work_is_refused(given: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(given, gradient_surgery_kwargs=options)


def test_without_torchjd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = make("mgda")
    model.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(ConfigurationError, match=r"'mgda' needs TorchJD: pip install \"sb3-softmod\[surgery\]\""):
        make("mgda")
    make("pcgrad")
    MultiTaskSAC.load(tmp_path / "model").predict(model.env.reset())  # type: ignore[union-attr]


def test_no_cuda_graph_holds_what_the_host_computes() -> None:
    recorded = []
    for surgery in ("pcgrad", "mgda"):
        model = make(surgery, cuda_graphs="auto", precision="fp32")
        model.device = th.device("cuda")  # for decisions alone
        recorded.append(model._acceleration().cuda_graphs)
    assert recorded == [True, False]
