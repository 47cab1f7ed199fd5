"""How near a gradient step comes to the speed of the hardware, with every option, beside simpler learners.

    python benchmarks/learner.py [--device cpu|cuda] [--batch-sizes 256 1280] [--networks official_shallow ...]

MT10's shapes (39 observations, 4 actions, 10 tasks), random transitions. All learners take a few steps in turn, round
after round: "ms" is the median over the rounds (least - most), "x plain" the median ratio to the plain learner of the
same network in the same round. "of peak" divides the rate of a step's useful arithmetic, 2 operations for each
parameter, sample and pass (see :func:`operations`), by that of one large product of the same precision with the same
threads, taken in turn too.

"plain" is fp32 with neither compilation nor graphs. "modules in loops" is the official network as separate layers, one
after the other, in SB3's own SAC; "SB3 SAC" its MLP of 3 x 400 on the same batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
import torch._dynamo
from methods import fill, make_env
from stable_baselines3 import SAC
from torch import Tensor, nn

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskSACPolicy
from sb3_softmod.learner.acceleration import keep_memory
from sb3_softmod.networks import MultiTaskNetwork

NUM_TASKS = 10
NETWORKS: dict[str, dict[str, str]] = {
    f"{variant}_{preset}": dict(variant=variant, preset=preset)
    for variant in ("official", "paper")
    for preset in ("shallow", "deep")
}
PLAIN: dict[str, Any] = dict(precision="fp32", compile=False, cuda_graphs=False)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compile": dict(compile=True),
    "bf16": dict(precision="bf16"),
    "bf16 + compile": dict(precision="bf16", compile=True),
    "categorical": dict(critic="categorical"),
    "3 steps": dict(n_steps=3),
    "scaled rewards": dict(reward_scaling="per-task"),
    "delayed actor": dict(policy_delay=2),
    "layer norm": dict(policy_kwargs=dict(normalization="layer")),
}
GPU_OPTIONS: dict[str, dict[str, Any]] = {
    "tf32": dict(precision="tf32"),
    "graphs": dict(cuda_graphs=True),
    "tf32 + graphs": dict(precision="tf32", cuda_graphs=True),
    "bf16 + graphs": dict(precision="bf16", cuda_graphs=True),
}


class LoopedNetwork(MultiTaskNetwork):
    """The official network as it is usually written: a layer for each module, members and modules in loops."""

    capturable = True

    def __init__(
        self, input_dim: int, output_dim: int, num_tasks: int, *, preset: str = "shallow", ensemble_size: int = 1
    ) -> None:
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        self.members = nn.ModuleList(_Member(input_dim, output_dim, num_tasks, preset) for _ in range(ensemble_size))

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        return th.stack([member(inputs, task) for member in self.members])


class _Member(nn.Module):
    def __init__(self, input_dim: int, output_dim: int, num_tasks: int, preset: str) -> None:
        super().__init__()
        L, n, d, D, R = (*((2, 2, 256) if preset == "shallow" else (4, 4, 128)), 400, 256)
        self.n = n
        self.state_encoder = nn.Sequential(nn.Linear(input_dim, D), nn.ReLU(), nn.Linear(D, D))
        self.task_encoder = nn.Linear(num_tasks, D)
        self.routing_encoder = nn.Sequential(nn.ReLU(), nn.Linear(D, R), nn.ReLU(), nn.Linear(R, R))
        self.routing_down = nn.ModuleList(nn.Linear(R, n * n if k < L - 1 else n) for k in range(L))
        self.routing_up = nn.ModuleList(nn.Linear((k + 1) * n * n, R) for k in range(L - 1))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(d if k else D, d) for _ in range(n)) for k in range(L))
        self.head = nn.Linear(d, output_dim)

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        embedding = self.state_encoder(inputs)
        e = self.routing_encoder(embedding * self.task_encoder(task))
        probabilities: list[Tensor] = []
        for k, down in enumerate(self.routing_down):
            context = self.routing_up[k - 1](th.cat([p.flatten(1) for p in probabilities], 1)) * e if k else e
            logits = down(th.relu(context))
            last = k == len(self.routing_down) - 1
            probabilities.append(logits.softmax(-1) if last else logits.view(-1, self.n, self.n).softmax(-1))
        g = [th.relu(embedding)] * self.n
        for modules, p in zip(self.layers, probabilities, strict=True):
            assert isinstance(modules, nn.ModuleList)
            outputs = [module(x) for module, x in zip(modules, g, strict=True)]
            rows = p.unsqueeze(1) if p.dim() == 2 else p  # [B, targets, n]
            g = [
                th.relu(th.stack([rows[:, i, j, None] * output for j, output in enumerate(outputs)]).sum(0))
                for i in range(rows.shape[1])
            ]
        return self.head(g[0])


class LoopedPolicy(MultiTaskSACPolicy):
    network_class = LoopedNetwork


def make_ours(network: str, batch_size: int, device: str, options: dict[str, Any]) -> MultiTaskSAC:
    model = MultiTaskSAC(
        "SoftModPolicy",
        make_env(NUM_TASKS),
        buffer_size=200 * NUM_TASKS,
        batch_size=batch_size,
        policy_kwargs={**NETWORKS[network], **options.get("policy_kwargs", {})},
        loss_weighting="log_alpha",
        max_grad_norm=1.0,
        seed=0,
        device=device,
        **{**PLAIN, **{name: value for name, value in options.items() if name != "policy_kwargs"}},
    )
    return fill(model)


def make_sb3(policy: Any, device: str, **policy_kwargs: Any) -> SAC:
    """SB3's own algorithm, on the same balanced batches."""
    model = SAC(
        policy,
        make_env(NUM_TASKS),
        buffer_size=200 * NUM_TASKS,
        replay_buffer_class=MultiTaskReplayBuffer,
        replay_buffer_kwargs=dict(num_tasks=NUM_TASKS),
        policy_kwargs=policy_kwargs,
        seed=0,
        device=device,
    )
    return fill(model)


def products_per_second(precision: str, device: str) -> Callable[[], float]:
    """Measures the rate of one large matrix product, operations a second."""
    size = 1024 if device == "cpu" else 8192
    dtype = th.bfloat16 if precision == "bf16" else th.float32
    a, b = th.randn(size, size, device=device, dtype=dtype), th.randn(size, size, device=device, dtype=dtype)

    def measure() -> float:
        before = th.get_float32_matmul_precision()
        th.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        a @ b
        wait(device)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 0.1:
            a @ b
            wait(device)
            count += 1
        rate = count * 2 * size**3 / (time.perf_counter() - start)
        th.set_float32_matmul_precision(before)
        return rate

    return measure


def wait(device: str) -> None:
    if device != "cpu":
        th.cuda.synchronize()


def operations(model: SAC, batch_size: int) -> float:
    """Of one gradient step in matrix products, by the parameters of the actor and of both critics.

    Forward passes: actor on next states, target critics, critics; backward, critics twice that. Where the actor learns,
    also: actor on states, critics; backward, actor twice that, critics once, to their inputs alone.
    """
    actor, critics = (sum(p.numel() for p in part.parameters()) for part in (model.actor, model.critic))
    delay = getattr(model, "policy_delay", 1)  # SB3's SAC has none
    return 2 * batch_size * (actor + 4 * critics + (3 * actor + 2 * critics) / delay)


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256, 1280], help="rounded down to 10 tasks")
    official = [name for name in NETWORKS if name.startswith("official")]
    parser.add_argument("--networks", nargs="+", default=official, choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--options", nargs="+", metavar="OPTION", help="default: all that the device has")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="gradient steps in a turn, even: an actor may be delayed")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/learner.json")
    args = parser.parse_args()
    keep_memory()
    th._dynamo.config.recompile_limit = 256  # many learners in one process
    known = {**OPTIONS, **(GPU_OPTIONS if args.device == "cuda" else {})}
    options = {name: known[name] for name in ["plain", *(args.options or known)]}

    machine = f"{len(os.sched_getaffinity(0))} cores, {th.get_num_threads()} threads of torch, {args.device}"
    print(f"{args.rounds} rounds of {args.steps} steps, {machine}")
    rows: list[dict[str, Any]] = []
    for batch_size in (size // NUM_TASKS * NUM_TASKS for size in args.batch_sizes):
        rows += compare(args, options, batch_size)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(machine=machine, torch=th.__version__, rows=rows), indent=1))


def compare(args: argparse.Namespace, options: dict[str, dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """All learners at one batch size; prints the table and returns its rows."""
    models: dict[tuple[str, str], SAC] = {}
    for network in args.networks:
        for name, given in options.items():
            models[network, name] = make_ours(network, batch_size, args.device, given)
        if network.startswith("official"):
            looped = make_sb3(LoopedPolicy, args.device, num_tasks=NUM_TASKS, preset=NETWORKS[network]["preset"])
            models[network, "modules in loops"] = looped
    models["SB3 SAC", "plain"] = make_sb3("MlpPolicy", args.device, net_arch=[400] * 3)

    peaks = {
        name: products_per_second(name, args.device) for name in ("fp32", "tf32", "bf16")[:: 1 + (args.device == "cpu")]
    }
    rates: dict[str, list[float]] = {name: [] for name in peaks}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in models}
    for round_ in range(args.rounds + 1):
        for name, measure in peaks.items():
            rate = measure()
            if round_:  # the first warms up, compiles and records
                rates[name].append(rate)
        for key, model in models.items():
            if not round_:
                model.train(5, batch_size)
            wait(args.device)
            start = time.perf_counter()
            model.train(args.steps, batch_size)
            wait(args.device)
            if round_:
                seconds[key].append((time.perf_counter() - start) / args.steps)

    print(f"\nbatch {batch_size}; peak " + ", ".join(f"{k} {summary([r / 1e9 for r in v])}" for k, v in rates.items()))
    print(f"{'':18}{'':18}{'ms':>30}{'x plain':>9}{'GFLOP':>8}{'of peak':>9}")
    rows = []
    for (network, name), times in seconds.items():
        precision = next((p for p in ("bf16", "tf32") if p in name), "fp32")
        work = operations(models[network, name], batch_size)
        row = dict(
            batch_size=batch_size,
            network=network,
            option=name,
            milliseconds=[1e3 * t for t in times],
            relative=statistics.median(t / base for t, base in zip(times, seconds[network, "plain"], strict=True)),
            gigaflop=work / 1e9,
            of_peak=statistics.median(work / t / rate for t, rate in zip(times, rates[precision], strict=True)),
            peak=[rate / 1e9 for rate in rates[precision]],
        )
        rows.append(row)
        print(
            f"{network:18}{name:18}{summary([1e3 * t for t in times]):>30}{row['relative']:>9.2f}"
            f"{row['gigaflop']:>8.2f}{row['of_peak']:>9.0%}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
