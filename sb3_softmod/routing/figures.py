"""All figures of the routing of a model, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.files import as_path, check_folder, save_figure
from sb3_softmod.common.task_observation import task_names_of
from sb3_softmod.evaluation.evaluate import rollout
from sb3_softmod.routing.history_figure import draw_routing_history
from sb3_softmod.routing.map_figure import draw_routing_map
from sb3_softmod.routing.network_figure import draw_routing, draw_shared_routing
from sb3_softmod.routing.routes import STEPS, RoutingStatistics, routed_networks, sample_routing
from sb3_softmod.routing.snapshots import RoutingSnapshots

#: Pairs of tasks that are drawn side by side.
_PAIRS = 6


def plot_routing(
    model: Any, env: VecEnv, out: str | Path, *, steps: int = STEPS, seed: int = 0, note: str | None = None
) -> list[Path]:
    """Draw the routing of a model over rollouts of its deterministic policy: the paper's Figures 3 and 4.

    For the actor and each critic ``routing-<network>`` (every task) and ``routing-<network>-pairs`` (the tasks that
    are routed most alike, where there are two), and for the actor ``routing-actor-map`` (t-SNE and similarities), each
    as SVG and PNG.

    :param model: any algorithm of SB3 with a soft-modular network
    :param env: a multi-task env; it is reset. A task that none of its envs plays in these steps is left out.
    :param out: folder, made if need be
    :param steps: steps of each env
    :param seed: of t-SNE
    :param note: below each figure: which run, which goals; default says the number of steps
    :return: the files
    :raises ConfigurationError: for a model without routing, or fewer than one step
    :raises FileError: for a folder that cannot be
    """
    routed_networks(model)  # before the rollouts, which take a while
    check_folder(out)
    out = as_path(out)
    all_samples = sample_routing(model, *rollout(model, env, steps), task_names_of(env))
    note = f"{steps} steps of each of {env.num_envs} envs" if note is None else note
    files = []
    for samples in all_samples:
        name = f"routing-{samples.network.replace(' ', '-')}"
        statistics = RoutingStatistics.of(samples)
        files += save_figure(draw_routing(statistics), out / name, note)
        if pairs := statistics.most_similar(_PAIRS):
            files += save_figure(draw_shared_routing(statistics, pairs), out / f"{name}-pairs", note)
        if samples is all_samples[0]:
            files += save_figure(draw_routing_map(samples, seed=seed), out / f"{name}-map", note)
    return files


def plot_routing_history(snapshots: str | Path, out: str | Path) -> list[Path]:
    """Draw how the routing changed during training, ``routing-history`` as SVG and PNG.

    :param snapshots: the file of a :class:`.RoutingSnapshotCallback`
    :param out: folder, made if need be
    :return: the files
    :raises ConfigurationError: for a file that is missing or holds fewer than two snapshots
    :raises FileError: for a folder that cannot be
    """
    check_folder(out)
    return save_figure(draw_routing_history(RoutingSnapshots.load(snapshots)), as_path(out) / "routing-history")
