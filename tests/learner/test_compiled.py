"""Compiled networks, and steps that a GPU replays: the numbers of the plain ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from accelerated_models import M, largest_difference, make_model, needs_gpu, take_steps
from every_method import DISTINCT
from point_mass import make_point_mass_env

from sb3_softmod import ConfigurationError, MultiTaskSAC
from sb3_softmod.policies.actor_critic import _SquashedGaussian

# ---------------------------------------------------------------------------- compiling


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    th._dynamo.reset()
    yield
    th._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_compiled_is_the_same(precision: str, tolerance: float, capsys: pytest.CaptureFixture[str]) -> None:
    """After 5 steps parameters are within 1e-5 (bf16: the metrics within 2 %), and a file goes on."""
    plain, compiled = (make_model(precision=precision, compile=on, verbose=1) for on in (False, True))
    expected, found = take_steps(plain, 5), take_steps(compiled, 5)
    assert "The first gradient step compiles the networks" in capsys.readouterr().out
    if precision == "fp32":
        assert largest_difference(compiled, plain) < tolerance
    for metric, values in expected.items():
        np.testing.assert_allclose(found[metric], values, rtol=tolerance, atol=tolerance, err_msg=metric)


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["single_task_sac", "hard_routing", "moore", "mix_expert"])
def test_methods_compile(name: str) -> None:
    plain, compiled = (make_model(name, compile=on) for on in (False, True))
    for model in (plain, compiled):
        take_steps(model, 3)
    assert largest_difference(compiled, plain) < 1e-5


# --------------------------------------------------------------------------------- GPUs


@needs_gpu
@pytest.mark.parametrize("name", [name for name in DISTINCT if name != "single_task_sac"])
def test_replayed_steps_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, of which seven are replayed, with the learning rates of a schedule: metrics within 1e-3."""

    def most_probable(distribution: _SquashedGaussian) -> th.Tensor:  # no noise, of which graphs keep their own count
        distribution.gaussian_actions = distribution.distribution.mean
        return th.tanh(distribution.gaussian_actions)

    monkeypatch.setattr(_SquashedGaussian, "sample", most_probable)
    found = []
    for cuda_graphs in (False, True):
        model = make_model(
            name, device="cuda", precision="fp32", cuda_graphs=cuda_graphs, learning_rate=lambda p: 1e-3 * p
        )
        take_steps(model, 6)
        model._current_progress_remaining = 0.1
        found.append(take_steps(model, 4))
    for metric, values in found[0].items():
        assert np.isfinite(found[1][metric]).all()
        if name not in ("hard_routing", "mt_sac_pcgrad"):  # which draw
            np.testing.assert_allclose(found[1][metric], values, rtol=1e-3, atol=1e-3, err_msg=metric)


@needs_gpu
def test_a_graph_is_recorded_anew_after_loading(tmp_path: Path) -> None:
    model = make_model(device="cuda", cuda_graphs=True)
    take_steps(model, 6)
    model.save(tmp_path / "model")
    on_cpu = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cpu", cuda_graphs="auto")
    on_gpu = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cuda")
    for loaded in (on_cpu, on_gpu):
        loaded.learn(20 * M)
        assert all(p.isfinite().all() for p in loaded.policy.parameters())
    model.set_parameters(on_gpu.get_parameters(), device="cuda")
    before = [p.clone() for p in model.critic.parameters()]
    take_steps(model, 6)
    assert not any(th.equal(p, old) for p, old in zip(model.critic.parameters(), before, strict=True))


@needs_gpu
@pytest.mark.parametrize("options", [dict(cuda_graphs=False), dict(cuda_graphs=True), dict(precision="bf16")])
def test_steps_never_wait_for_the_gpu(options: dict[str, Any]) -> None:
    model = make_model(device="cuda", **options)
    take_steps(model, 6)
    batch = model.replay_buffer.sample(8 * M)  # type: ignore[union-attr]
    step = model._learner()
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step.set_learning_rate(1e-3)
            model._metrics.add(step(batch))
            step.update_targets()
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(v) for values in model._metrics.pop().values() for v in values)


@needs_gpu
def test_single_task_networks_are_not_recorded() -> None:
    assert not make_model("single_task_sac", device="cuda")._learner()._acceleration.cuda_graphs
    with pytest.raises(ConfigurationError, match="cuda_graphs=True does not work with SingleTaskNetwork"):
        make_model("single_task_sac", device="cuda", cuda_graphs=True)
