"""Precision, memory and options of accelerated learning: the same numbers as without them, for every method."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from accelerated_models import SMALL, M, largest_difference, make_model, take_steps
from every_method import EVERY_METHOD
from point_mass import make_point_mass_env
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_softmod import ConfigurationError, MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecNormalize, SoftModSAC
from sb3_softmod.cli import main
from sb3_softmod.learner import acceleration
from sb3_softmod.learner.acceleration import Acceleration, decide_storage
from sb3_softmod.learner.replay_buffer import nbytes_of

# ------------------------------------------------------------------------- the plain path


def test_fused_adam_is_adam() -> None:
    """After 50 steps every parameter is within 1e-5 of what one operation after the other gives."""
    plain_adam = dict(optimizer_kwargs=dict(foreach=False))
    fused, plain = make_model(), make_model(policy_kwargs={**SMALL["SoftModPolicy"], **plain_adam})
    plain.policy.load_state_dict(fused.policy.state_dict())
    for model in (fused, plain):
        take_steps(model, 50)
    assert [model.critic.optimizer.param_groups[0]["fused"] for model in (fused, plain)] == [True, None]
    assert largest_difference(fused, make_model()) > 0
    assert largest_difference(fused, plain) < 1e-5


def test_targets_follow_by_tau() -> None:
    model = make_model(tau=0.25, target_update_interval=2)
    before = [p.clone() for p in model.critic_target.parameters()]
    model.train(1, 8 * M)
    for old, critic, target in zip(before, model.critic.parameters(), model.critic_target.parameters(), strict=True):
        th.testing.assert_close(target, old + 0.25 * (critic - old), rtol=0, atol=1e-6)


def test_targets_move_in_one_of_so_many_gradient_steps() -> None:
    """Counted over the training, not anew in each of its calls as in SB3."""
    model = make_model(target_update_interval=3)
    moved = []
    for _ in range(5):
        before = [p.clone() for p in model.critic_target.parameters()]
        model.train(1, 8 * M)
        moved.append(any((p != b).any() for p, b in zip(model.critic_target.parameters(), before, strict=True)))
    assert moved == [True, False, False, True, False]


def test_the_critics_take_gradients_again_after_judging_the_actor() -> None:
    model = make_model()
    frozen = model.critic.network.task_encoder.bias.requires_grad_(False)  # type: ignore[union-attr]
    take_steps(model, 2)
    assert all(p.requires_grad for p in model.critic.parameters() if p is not frozen)
    assert not frozen.requires_grad


# --------------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_every_method_learns_in_bf16(name: str, tmp_path: Path) -> None:
    """Losses near those of fp32, parameters and optimizers in float32, and the file acts as the model."""
    fp32, bf16 = make_model(name), make_model(name, precision="bf16")
    expected, found = take_steps(fp32, 1), take_steps(bf16, 1)
    if "hard_routing" not in name:  # its routes are drawn, and one of them may fall the other way
        for metric, values in expected.items():
            np.testing.assert_allclose(found[metric], values, rtol=0.05, atol=0.05, err_msg=metric)
    before = {key: p.detach().clone() for key, p in bf16.policy.named_parameters()}
    for metric, values in take_steps(bf16, 20).items():
        assert np.isfinite(values).all(), metric
    moved = {key for key, p in bf16.policy.named_parameters() if not th.equal(p, before[key])}
    assert moved == set(before)
    for optimizer in (bf16.actor.optimizer, bf16.critic.optimizer):
        tensors = [value for state in optimizer.state.values() for value in state.values()]
        assert {tensor.dtype for tensor in [*tensors, *bf16.policy.parameters()]} == {th.float32}

    bf16.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model")
    assert loaded.precision == "bf16"
    obs = np.asarray(make_point_mass_env(M).reset())
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], bf16.predict(obs, deterministic=True)[0])


def test_bf16_is_in_use_while_learning_alone() -> None:
    model = make_model(precision="bf16")
    seen: list[th.dtype] = []
    model.actor.network.state_encoder.register_forward_hook(lambda *call: seen.append(call[2].dtype))  # type: ignore[union-attr]
    take_steps(model, 1)
    assert seen == [th.bfloat16, th.bfloat16]  # on states and on next states
    model.predict(np.asarray(make_point_mass_env(M).reset()))
    assert seen[2:] == [th.float32]


@pytest.mark.parametrize("instructions", [True, False])
def test_fastest_is_what_the_processor_has(instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(th.cpu, test, lambda: instructions)
    assert make_model(precision="fastest")._acceleration().precision == ("bf16" if instructions else "fp32")
    model = MultiTaskSAC("MlpPolicy", make_point_mass_env(M), precision="fastest", buffer_size=100, device="cpu")
    assert model._acceleration().precision == "fp32"  # SB3's networks take no bf16


@pytest.mark.parametrize("compiler", ["/usr/bin/g++", None])
def test_auto_compiles_where_there_is_a_compiler(compiler: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    assert make_model(compile="auto")._acceleration().compile == (compiler is not None)
    assert not make_model("mt_sac_pcgrad", compile="auto")._acceleration().compile
    assert not make_model()._acceleration().compile
    if compiler is None:
        with pytest.raises(ConfigurationError, match=r"compile=True needs a C\+\+ compiler: install g\+\+, or leave"):
            make_model(compile=True)
    else:  # what torch.compile writes includes Python's headers
        monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
        assert not make_model(compile="auto")._acceleration().compile
        with pytest.raises(
            ConfigurationError, match=r"compile=True needs /nowhere/Python\.h \(Debian, Ubuntu: apt install"
        ):
            make_model(compile=True)


def test_routing_probabilities_are_float32_under_autocast() -> None:
    model = make_model()
    obs = model.replay_buffer.sample(8 * M).observations  # type: ignore[union-attr]
    with th.autocast("cpu", th.bfloat16):
        for probabilities in model.actor.network.routing(obs[:, :-M], obs[:, -M:]):  # type: ignore[union-attr, operator]
            assert probabilities.dtype is th.float32
            assert (probabilities.sum(-1) - 1).abs().max() < 1e-6


def test_tf32_is_set_for_the_learner_alone() -> None:
    gpu = th.device("cuda")
    acceleration = Acceleration(gpu, "tf32", compile=False, cuda_graphs=False, storage=gpu)
    before = th.get_float32_matmul_precision()
    with acceleration.products():
        assert th.get_float32_matmul_precision() == "high"
    assert th.get_float32_matmul_precision() == before


# ------------------------------------------------------------------------- memory


PAGE_FAULTS = """
import resource

def faults():  # of one round of 8 blocks, taken and given back, after three such rounds
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [b"x" * (24 << 20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
from point_mass import make_point_mass_env
from sb3_softmod import MultiTaskSAC
options = dict(batch_size=4, learning_starts=2, policy_kwargs=dict(net_arch=[4]), device="cpu")
MultiTaskSAC("MTMlpPolicy", make_point_mass_env(2), **options).learn(8)
print(faults())
from sb3_softmod.learner.acceleration import keep_memory
keep_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("by_environment", [False, True])
def test_learning_leaves_the_memory_of_the_process_as_it_is(by_environment: bool) -> None:
    """What commands do for themselves, the variables on the page Speed do for others."""
    variables = re.findall(r"(MALLOC_\w+)=(\d+)", (Path(__file__).parents[2] / "docs" / "speed.md").read_text())
    assert len(variables) == 2
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"),
        **dict(variables if by_environment else []),
    }
    run = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    at_first, after_learning, kept = map(int, run.stdout.split())
    if by_environment:
        assert max(at_first, after_learning, kept) < 10
    else:
        assert min(at_first, after_learning) > 10 * max(kept, 1)


@pytest.mark.parametrize(("command", "keeps"), [("train --algo nothing", True), ("evaluate nothing", False)])
def test_commands_that_learn_keep_memory(command: str, keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(acceleration, "keep_memory", lambda: calls.append(None))
    assert main(command.split()) == 2
    assert len(calls) == keeps


# ------------------------------------------------------- files, schedules, normalisation


@pytest.mark.parametrize("fused_before", [False, True])
def test_a_file_goes_on_as_the_model_does(fused_before: bool, tmp_path: Path) -> None:
    """Files of before the optimizers were fused too."""
    model = make_model()
    take_steps(model, 5)
    if not fused_before:
        for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
            assert optimizer is not None
            optimizer.param_groups[0]["fused"] = None
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cpu")
    again = make_model()
    again.set_parameters(str(tmp_path / "model.zip"), device="cpu")
    again.log_ent_coef.data.copy_(model.log_ent_coef.data)  # type: ignore[union-attr]
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for going_on in (model, loaded, again):
        take_steps(going_on, 5)
        assert largest_difference(going_on, model) < 1e-5
    assert all(m.critic.optimizer.param_groups[0]["fused"] for m in (loaded, again))


def test_set_parameters_takes_the_optimizers_state() -> None:
    model, other = make_model(), make_model(seed=1)
    take_steps(model, 5)
    take_steps(other, 3)
    other.set_parameters(model.get_parameters(), device="cpu")
    take_steps(other, 1)
    assert {float(state["step"]) for state in other.critic.optimizer.state.values()} == {6.0}


def test_a_schedule_of_the_learning_rate_is_followed() -> None:
    model = make_model(learning_rate=lambda remaining: 1e-3 * remaining)
    model._current_progress_remaining = 0.5
    take_steps(model, 1)
    rates = {group["lr"] for group in (*model.actor.optimizer.param_groups, *model.critic.optimizer.param_groups)}
    assert rates == {0.0005}


def test_normalisation_and_overlap_in_bf16() -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(M))
    model = make_model(env=env, precision="bf16", overlap=True)
    model.learn(40 * M)
    assert model._n_updates == 30
    assert all(p.isfinite().all() for p in model.policy.parameters())


# ------------------------------------------------------------------------- the options


def test_what_was_decided_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(verbose=1)
    model.learn(12 * M, log_interval=None)
    model.learn(2 * M, log_interval=None)
    line = "Learner on cpu: precision fp32, compile off, CUDA graphs off, replay buffer on cpu."
    assert capsys.readouterr().out.count(line) == 1


@pytest.mark.parametrize(("free", "chosen"), [(4, "cuda"), (3.99, "cpu")])
def test_the_buffer_is_on_the_gpu_where_there_is_room(
    free: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told without a GPU: by what the GPU would say of its memory."""
    model = make_model()
    buffer = model.replay_buffer
    assert isinstance(buffer, MultiTaskReplayBuffer)
    rows = nbytes_of(buffer.buffer_size, model.observation_space, model.action_space, M)
    buffer.reset()
    assert 0 <= buffer.nbytes - rows <= 8 * M  # and the number of transitions of each task
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda device: (free * rows, 100 * rows))
    assert decide_storage("auto", th.device("cuda"), rows).type == chosen
    assert decide_storage("cpu", th.device("cuda"), rows).type == "cpu"


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("softmod_official", dict(precision="bf61"), "Unknown precision 'bf61': did you mean 'bf16'"),
        ("softmod_official", dict(precision="tf32"), 'precision="tf32" needs a GPU; on cpu there are'),
        ("softmod_official", dict(compile="yes"), "compile must be 'auto', True or False, not 'yes'"),
        ("softmod_official", dict(cuda_graphs="yes"), "cuda_graphs must be 'auto', True or False, not 'yes'"),
        ("softmod_official", dict(cuda_graphs=True), "cuda_graphs=True needs a GPU, not cpu: leave it at 'auto'"),
        ("softmod_official", dict(buffer_device="gpu"), "buffer_device must be a device such as 'cpu' or 'cuda'"),
        (
            "softmod_official",
            dict(buffer_device="cuda", replay_buffer_class=ReplayBuffer),
            "buffer_device='cuda' needs MultiTaskReplayBuffer",
        ),
        ("mt_sac_pcgrad", dict(compile=True), "compile=True does not work with gradient_surgery"),
    ],
)
def test_what_cannot_work_is_refused(method: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make_model(method, **kwargs)


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """SB3 takes the CPU without a word."""
    with pytest.raises(ConfigurationError, match="device is 'cuda', but PyTorch finds no GPU here: take 'cpu' or"):
        make_model(device="cuda")
    make_model().save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match="device is 'cuda:1', but PyTorch finds no GPU here"):
        MultiTaskSAC.load(tmp_path / "model", device="cuda:1")


def test_sb3s_policies_have_no_bf16() -> None:
    with pytest.raises(ConfigurationError, match='precision="bf16" needs a policy of this package, not SACPolicy'):
        MultiTaskSAC("MlpPolicy", make_point_mass_env(M), precision="bf16")


def test_a_model_of_a_gpu_acts_without_one_and_refuses_to_learn(tmp_path: Path) -> None:
    model = make_model()
    model.precision = "tf32"  # as if it had been made there
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cpu")
    loaded.predict(np.asarray(make_point_mass_env(M).reset()))
    with pytest.raises(ConfigurationError, match='precision="tf32" needs a GPU'):
        loaded.learn(M)
    MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cpu", precision="fp32").learn(M)


def test_softmod_sac_takes_the_options() -> None:
    model = SoftModSAC("SoftModPolicy", make_point_mass_env(M), policy_kwargs=SMALL["SoftModPolicy"], precision="bf16")
    assert model.precision == "bf16"
