"""How the learner uses the hardware: precision, compilation and CUDA graphs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.learner.options import LearnerOptions, Precision
from sb3_softmod.policies import MultiTaskActor, MultiTaskCritic, MultiTaskSACPolicy

#: A gradient step: from a batch to its metrics.
Step = Callable[[ReplayBufferSamples], Tensor]

# Parameters of mallopt, by malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

#: Steps before a CUDA graph is recorded, in which libraries make their workspaces and optimizers their state.
_WARM_UP = 3


@dataclass(frozen=True)
class Acceleration:
    """What was decided for one learner.

    :param device: where it learns
    :param precision: of the matrix products; parameters, losses, log-probabilities and optimizers are always float32
    :param compile: whether torch.compile compiles the networks
    :param cuda_graphs: whether gradient steps are recorded once and then replayed
    :param storage: where the replay buffer is
    """

    device: th.device
    precision: Precision
    compile: bool
    cuda_graphs: bool
    storage: th.device

    def evaluation(self, function: Callable[..., Any], compiled: bool = True) -> Callable[..., Any]:
        """A function that evaluates a network, as the learner calls it.

        :param function: whose outputs are float32 in any precision
        :param compiled: whether it may be compiled; what hooks of a network see, it may not
        """
        if self.compile and compiled:
            # Random numbers as without it; acting evaluates the network itself, so that its batches compile nothing.
            function = th.compile(function, dynamic=False, options={"fallback_random": True})
        # Around the compiled function: the compiler counts what it makes of one piece of code, and gives up at 8.
        return th.autocast(self.device.type, th.bfloat16)(function) if self.precision == "bf16" else function

    def step(self, step: Step, settings: Callable[[], Any]) -> Step:
        """The gradient step, recorded as a CUDA graph where that was decided; see :class:`RecordedStep`."""
        return RecordedStep(step, self.device, settings) if self.cuda_graphs else step

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Sets the precision of float32 products on GPUs, which is the whole process's, for a while."""
        if self.precision != "tf32":
            yield
            return
        before = th.get_float32_matmul_precision()
        th.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            th.set_float32_matmul_precision(before)

    def prepare(self, optimizer: th.optim.Optimizer) -> None:
        """Make Adam one fused operation, and let a graph replay it; its state may come from a file of any device.

        :param optimizer: any; others than Adam stay, and so do ``fused`` and ``foreach`` where the user set one
        """
        if not isinstance(optimizer, th.optim.Adam):
            return
        for group in optimizer.param_groups:
            if group["fused"] is None and group["foreach"] is None:
                group["fused"] = True
            group["capturable"] = self.cuda_graphs
            # A graph reads the rate where it was recorded: a schedule then fills that tensor.
            group["lr"] = th.tensor(float(group["lr"]), device=self.device) if self.cuda_graphs else float(group["lr"])
            for parameter in group["params"]:
                state = optimizer.state.get(parameter)
                if state:
                    on_device = group["fused"] or group["capturable"]
                    state["step"] = th.as_tensor(
                        state["step"], dtype=th.float32, device=parameter.device if on_device else "cpu"
                    )

    def __str__(self) -> str:
        switch = ("off", "on")
        return (
            f"Learner on {self.device}: precision {self.precision}, compile {switch[self.compile]}, "
            f"CUDA graphs {switch[self.cuda_graphs]}, replay buffer on {self.storage}."
            + " The first gradient step compiles the networks, which takes 40 seconds to two minutes."
            * self.compile
        )


def keep_memory() -> None:
    """With glibc, keep freed memory for the next gradient step instead of handing it back.

    A step on a CPU allocates and frees hundreds of MB. By default glibc returns part of it each time, and the kernel
    then finds and clears thousands of pages again: a tenth of a step's time, and much of its spread. The setting is the
    whole process's, so that only commands call this; others have the variables that docs/speed.md names.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def decide(options: LearnerOptions, policy: SACPolicy, device: th.device, storage: th.device) -> Acceleration:
    """Fill in what the user left open.

    :param policy: what learns
    :param device: where it does
    :param storage: where the replay buffer is
    :raises ConfigurationError: for what was asked for by name and does not work on this device, or with this policy
    """
    on_gpu = device.type == "cuda"

    precision = options.precision
    if precision == "fastest":
        precision = "bf16" if isinstance(policy, MultiTaskSACPolicy) and _multiplies_bf16(device) else "auto"
    if precision == "auto":
        precision = "tf32" if on_gpu and th.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if precision == "tf32" and not on_gpu:
        raise ConfigurationError(f'precision="tf32" needs a GPU; on {device} there are "fp32" and "bf16".')
    if precision == "bf16" and not isinstance(policy, MultiTaskSACPolicy):
        raise ConfigurationError(
            f'precision="bf16" needs a policy of this package, not {type(policy).__name__}; MTMlpPolicy is the '
            "plain perceptron."
        )

    obstacle = _obstacle_to_compiling(device, options)
    if options.compile is True and obstacle:
        raise ConfigurationError(f"compile=True {obstacle}.")
    compiled = options.compile is True or (options.compile == "auto" and not on_gpu and obstacle is None)

    obstacle = _obstacle_to_graphs(policy, device, options)
    if options.cuda_graphs is True and obstacle:
        raise ConfigurationError(f"cuda_graphs=True {obstacle}: leave it at 'auto' or False.")
    cuda_graphs = options.cuda_graphs is not False and obstacle is None
    return Acceleration(device, precision, compiled, cuda_graphs, storage)


def _multiplies_bf16(device: th.device) -> bool:
    """Whether a processor has instructions for products in bf16; without them they are several times slower."""
    if device.type == "cuda":
        return th.cuda.get_device_capability(device) >= (8, 0)
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(th.cpu, test, lambda: False)() for test in tests)


def decide_storage(wanted: th.device | str, device: th.device, nbytes: int) -> th.device:
    """Where transitions are kept.

    :param wanted: a device, or "auto"
    :param device: where the model learns
    :param nbytes: that they take
    """
    if wanted != "auto":
        return th.device(wanted)
    cpu = th.device("cpu")
    if device.type != "cuda":
        return cpu
    free, _ = th.cuda.mem_get_info(device)
    return device if 4 * nbytes <= free else cpu


def _obstacle_to_compiling(device: th.device, options: LearnerOptions) -> str | None:
    """Why networks cannot be compiled, if so."""
    if options.gradient_surgery is not None:
        return "does not work with gradient_surgery: leave one of them out"
    if device.type != "cpu":
        return None
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not shutil.which(os.environ.get("CXX", usual)):
        return f"needs a C++ compiler: install {usual}, or leave compile at 'auto' or False"
    if not header.exists():  # which what torch.compile writes includes
        return f"needs {header} (Debian, Ubuntu: apt install python3-dev), or leave compile at 'auto' or False"
    return None


def _obstacle_to_graphs(policy: SACPolicy, device: th.device, options: LearnerOptions) -> str | None:
    """Why gradient steps cannot be replayed, if so."""
    if device.type != "cuda":
        return f"needs a GPU, not {device}"
    if not isinstance(policy, MultiTaskSACPolicy):
        return f"needs a policy of this package, not {type(policy).__name__}, which waits for the device"
    network = policy.network_class
    if not network.capturable:
        return (
            f"does not work with {network.__name__}, which does not say (capturable = True) that its passes never wait "
            "for the device nor depend on what changes in Python"
        )
    if type(policy.actor) is not MultiTaskActor or type(policy.critic) is not MultiTaskCritic:
        return "needs actor and critics of this package"
    if policy.optimizer_class not in (th.optim.Adam, th.optim.AdamW):
        return f"needs Adam or AdamW, not {policy.optimizer_class.__name__}"
    adam = policy.optimizer_kwargs
    if not adam.get("fused", adam.get("foreach") is None):  # the others cannot be told on the device not to step
        return "needs the fused Adam (leave optimizer_kwargs without fused and foreach)"
    if options.gradient_surgery not in (None, "pcgrad"):  # of TorchJD
        return "does not work with gradient_surgery other than 'pcgrad', which is computed on the host"
    return None


class RecordedStep:
    """A gradient step that is recorded once, as a CUDA graph, and then replayed: one launch instead of hundreds.

    The first steps run as they are, on the stream of the recording. It is made anew for a batch of another shape, and
    where the settings change, which a recording holds as they were.

    :param step: allocates, but never waits for the device; tensors that it reads besides the batch must stay in place
    :param device: a GPU, the current one or another
    :param settings: all that the step reads besides tensors
    """

    def __init__(self, step: Step, device: th.device, settings: Callable[[], Any]) -> None:
        self.step = step
        self.device = device
        self.settings = settings
        self.stream = th.cuda.Stream(device)
        self._batch: list[Any] = []
        self._made_for: Any = None
        self._warm = 0
        self._graph: th.cuda.CUDAGraph | None = None
        self._metrics: Tensor | None = None

    def __call__(self, batch: ReplayBufferSamples) -> Tensor:
        """Take the step.

        :param batch: the transitions
        :return: what ``step`` returns, valid until the next call
        """
        made_for = [None if tensor is None else tensor.shape for tensor in batch], self.settings()
        if made_for != self._made_for:
            self._made_for, self._warm, self._graph = made_for, 0, None
        if self._warm < _WARM_UP:
            self._warm += 1
            current = th.cuda.current_stream(self.device)
            self.stream.wait_stream(current)
            with th.cuda.stream(self.stream):
                metrics = self.step(batch)
            current.wait_stream(self.stream)
            return metrics
        if self._graph is None:
            self._record(batch)
        for static, tensor in zip(self._batch, batch, strict=True):
            if static is not None and tensor is not None:
                static.copy_(tensor, non_blocking=True)
        assert self._graph is not None
        assert self._metrics is not None
        self._graph.replay()
        return self._metrics

    def _record(self, batch: ReplayBufferSamples) -> None:
        self._batch = [None if tensor is None else tensor.clone() for tensor in batch]
        graph = th.cuda.CUDAGraph()
        # Nothing is computed: the replay does it. A graph belongs to the current device and takes its random numbers.
        # Other threads may use their GPUs meanwhile.
        with (
            th.cuda.device(self.device),
            th.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            self._metrics = self.step(type(batch)(*self._batch))
        self._graph = graph
