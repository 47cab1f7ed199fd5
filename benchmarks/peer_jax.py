"""A gradient step of ours in turns with the same step of the same networks in JAX, compiled by XLA.

    python benchmarks/peer_jax.py [--batch-sizes 1280 250] [--networks paper_shallow ...]

MT10's shapes (39 observations, 4 actions, 10 tasks), random transitions, the same weights to begin with. Ours draws its
batches from the replay buffer, JAX has some that were drawn before. ``jax_step.py`` is the step in JAX,
``tests/learner/test_jax_peer.py`` holds it equal to ours. All take turns of a second, each round in another order, with
as many threads as the process has cores; the first step of a turn, on the caches and threads of another, does not
count. "ms" is the median over the rounds (least - most), "x JAX" the ratio of JAX's time to this one in the same round,
its median (least - most). On one core (``taskset -c 0``) the same of the processor's time stands beside it, which other
processes disturb less; on more, threads that wait would count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch as th
from jax_step import Batch, Parameters, Settings, State, from_torch, make_step, state_of
from learner import NETWORKS, NUM_TASKS, OPTIONS, make_ours, operations, summary
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_softmod import MultiTaskSAC, SoftModularNetwork
from sb3_softmod.common.task_observation import split
from sb3_softmod.learner.acceleration import keep_memory

OURS = ("plain", "compile", "bf16 + compile")
THEIRS = {"JAX": jnp.float32, "JAX, bf16": jnp.bfloat16}


def networks_of(model: MultiTaskSAC) -> dict[str, SoftModularNetwork]:
    parts = {"actor": model.actor, "critics": model.critic, "targets": model.critic_target}
    return {name: cast(SoftModularNetwork, part.network) for name, part in parts.items()}


def settings_of(model: MultiTaskSAC, dtype: Any = jnp.float32) -> Settings:
    networks = networks_of(model)
    return Settings(
        actor=networks["actor"].options,
        critics=networks["critics"].options,
        target_entropy=float(model.target_entropy),
        weighting=model.loss_weighting,
        max_grad_norm=cast("float | None", model.max_grad_norm),
        gamma=model.gamma,
        tau=model.tau,
        learning_rate=cast(float, model.learning_rate),
        dtype=dtype,
    )


def state_of_model(model: MultiTaskSAC) -> State:
    assert model.log_ent_coef is not None
    log_alpha = jnp.array(model.log_ent_coef.detach().numpy())
    return state_of(**{name: from_torch(of) for name, of in networks_of(model).items()}, log_alpha=log_alpha)


def gradients_of(model: MultiTaskSAC) -> dict[str, Parameters]:
    """Those of the last step."""
    networks = networks_of(model)
    found = {name: from_torch(networks[name], gradients=True) for name in ("actor", "critics")}
    assert model.log_ent_coef is not None
    assert model.log_ent_coef.grad is not None
    return {**found, "log_alpha": jnp.array(model.log_ent_coef.grad.numpy())}


def batch_of(samples: ReplayBufferSamples, num_tasks: int) -> Batch:
    states, tasks = split(samples.observations.numpy(), num_tasks)
    next_states, next_tasks = split(samples.next_observations.numpy(), num_tasks)
    rewards, dones = samples.rewards.flatten().numpy(), samples.dones.flatten().numpy()
    return Batch(states, tasks, samples.actions.numpy(), rewards, dones, next_states, next_tasks)


def steps_in_jax(model: MultiTaskSAC, batch_size: int, dtype: Any) -> Callable[[int, int], None]:
    """Takes gradient steps in JAX on batches of a model, from its weights on: ``steps(number, batch size)``."""
    step, state = make_step(settings_of(model, dtype)), state_of_model(model)
    assert model.replay_buffer is not None
    drawn = [batch_of(model.replay_buffer.sample(batch_size), NUM_TASKS) for _ in range(20)]
    keys = jax.random.split(jax.random.key(0), len(drawn))
    prepared = cycle([(jax.tree.map(np.ascontiguousarray, batch), key) for batch, key in zip(drawn, keys, strict=True)])

    def take(steps: int, batch_size: int) -> None:
        nonlocal state
        for batch, key in islice(prepared, steps):
            state, _ = step(state, batch, key)
        jax.block_until_ready(state)

    return take


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1280, 250], help="divisible by 10")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--options", nargs="+", default=OURS, choices=OPTIONS, metavar="OPTION", help="of ours")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about")
    parser.add_argument("--out", type=Path, help="JSON to write, as benchmarks/results/peer_jax.json")
    args = parser.parse_args()
    keep_memory()
    cores = len(os.sched_getaffinity(0))  # XLA takes them all
    th.set_num_threads(cores)
    th._dynamo.config.recompile_limit = 256  # many learners in one process

    machine = f"{cores} cores"
    print(f"{args.rounds} rounds of turns of {args.seconds:g} s, {machine}")
    rows = [
        row
        for network in args.networks
        for batch_size in args.batch_sizes
        for row in compare(network, batch_size, args)
    ]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        versions = dict(torch=th.__version__, jax=jax.__version__)
        args.out.write_text(json.dumps(dict(machine=machine, **versions, rows=rows), indent=1) + "\n")


def compare(network: str, batch_size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All learners of one network at one batch size; prints their rows and returns them."""
    models = {name: make_ours(network, batch_size, "cpu", OPTIONS[name]) for name in args.options}
    steps: dict[str, Callable[[int, int], None]] = {name: model.train for name, model in models.items()}
    template = make_ours(network, batch_size, "cpu", {})
    steps.update({name: steps_in_jax(template, batch_size, dtype) for name, dtype in THEIRS.items()})
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    of_cpu: dict[str, list[float]] = {name: [] for name in steps}
    counts = {}  # of the steps in a turn
    for name, take in steps.items():
        take(2, batch_size)  # compiles
        start = time.perf_counter()
        take(3, batch_size)
        counts[name] = max(3, math.ceil(3 * args.seconds / (time.perf_counter() - start)))
    order = random.Random(0)
    for _ in range(args.rounds):
        for name in order.sample(list(steps), len(steps)):
            steps[name](1, batch_size)
            start, cpu_start = time.perf_counter(), time.process_time()
            steps[name](counts[name], batch_size)
            seconds[name].append((time.perf_counter() - start) / counts[name])
            of_cpu[name].append((time.process_time() - cpu_start) / counts[name])

    work = operations(template, batch_size)
    print(f"\n{network}, batch {batch_size}, {work / 1e9:.1f} GFLOP")
    kinds = {"ms": seconds, **({"CPU ms": of_cpu} if th.get_num_threads() == 1 else {})}
    print(f"{'':18}" + "".join(f"{kind:>30}{'x JAX':>20}" for kind in kinds) + f"{'GFLOP/s':>9}")
    rows = []
    for name in steps:
        row: dict[str, Any] = dict(network=network, batch_size=batch_size, option=name)
        columns = []
        for kind, times in zip(("", "cpu_"), kinds.values(), strict=False):
            row[f"{kind}milliseconds"] = [1e3 * t for t in times[name]]
            ratios = [base / t for t, base in zip(times[name], times["JAX"], strict=True)]
            row[f"{kind}times_as_fast_as_jax"] = statistics.median(ratios)
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
            columns.append(f"{summary(row[f'{kind}milliseconds']):>30}{spread:>20}")
        row["gigaflop_a_second"] = work / statistics.median(seconds[name]) / 1e9
        rows.append(row)
        print(f"{name:18}{''.join(columns)}{row['gigaflop_a_second']:>9.0f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
