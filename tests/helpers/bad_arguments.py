"""Bad arguments for :mod:`bad_inputs`: what is passed to classes and functions of the library."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from bad_inputs import BadInput, later
from bad_shapes import Graph, shapes
from bad_values import JUNK, SMALL, bad_values, model, point_mass
from gymnasium import spaces
from point_mass import PointMass

from sb3_softmod import (
    MultiTaskSAC,
    MultiTaskVecEnv,
    MultiTaskVecNormalize,
    SoftModularExtractor,
    SoftModularNetwork,
    TaskEnv,
    make_metaworld_env,
    make_multitask_env,
)
from sb3_softmod.evaluation import MultiTaskEvalCallback, evaluate_tasks
from sb3_softmod.methods import get_method
from sb3_softmod.routing.snapshots import RoutingSnapshotCallback
from sb3_softmod.runs.parameters import parameter_table
from sb3_softmod.runs.results import results_table
from sb3_softmod.runs.statistics import aggregate


def every() -> list[BadInput]:
    """All of them."""
    return [*algorithms(), *policies(), *task_sets(), *shapes(), *evaluations()]


# ------------------------------------------------------------------------------------ algorithm and policies


def algorithms() -> Iterator[BadInput]:
    def make(policy: Any = "MTMlpPolicy", **kwargs: Any) -> Any:
        return MultiTaskSAC(policy, **{"env": point_mass(), **SMALL, **kwargs})

    yield from bad_values(
        "algorithm",
        "MultiTaskSAC",
        make,
        {
            "policy": "name",
            "env": "anything else",
            "learning_rate": "number from 0",
            "buffer_size": "size",
            "learning_starts": "count from 0 or None",
            "batch_size": "count or None",
            "tau": "share",
            "gamma": "share",
            "train_freq": "count",
            "gradient_steps": "count from -1",
            "action_noise": "nothing else",
            "replay_buffer_class": "nothing else",
            "replay_buffer_kwargs": "mapping or None",
            "target_update_interval": "count",
            "n_steps": "count",
            "loss_weighting": "name",
            "loss_weighting_kwargs": "mapping or None",
            "max_grad_norm": "positive or None",
            "gradient_surgery": "name or None",
            "gradient_surgery_kwargs": "mapping or None",
            "reward_scaling": "name or None",
            "critic": "name",
            "num_atoms": "size",
            "critic_target": "name",
            "policy_delay": "count",
            "num_tasks": "nothing else",
            "overlap": "flag",
            "precision": "name",
            "compile": "flag",
            "stats_window_size": "count",
            "policy_kwargs": "mapping or None",
            "seed": "seed",
        },
        {"env": "", "num_tasks": "task"},
    )
    for what in ("a word", "no word", "a list", "a thing", "NaN", "a complex number"):
        for argument in ("ent_coef", "target_entropy", "device", "buffer_device", "cuda_graphs", "use_sde"):
            if (argument, what) not in {("device", "no word"), ("buffer_device", "no word")}:
                yield BadInput(
                    "algorithm",
                    f"{argument} is {what}",
                    later(make, **{argument: JUNK[what]}),
                    argument,
                )
    for text, env, mentions in (
        ("an unknown set", "MT11", "MT10"),
        ("an env without tasks", "Pendulum-v1", "no tasks"),
        ("an unknown module", "nowhere:Env-v0", "nowhere"),
        ("a malformed id", "a:b:c", "a:b:c"),
    ):
        yield BadInput("algorithm", f"env is {text}", later(make, env=env), mentions)

    def learn(total_timesteps: Any = 2, **kwargs: Any) -> Any:
        return model().learn(total_timesteps, **kwargs)

    for argument in ("total_timesteps", "callback", "log_interval"):
        for what in ("a word", "a thing", "NaN", "a list", "minus one", "one and a half"):
            if (argument, what) not in {("total_timesteps", "one and a half")}:
                yield BadInput(
                    "algorithm",
                    f"learn: {argument} is {what}",
                    later(learn, **{argument: JUNK[what]}),
                    argument,
                )


#: The options of every policy's network.
OPTIONS: dict[str, dict[str, str]] = {
    "SoftModPolicy": {
        "num_layers": "nothing else",
        "num_modules": "nothing else",
        "module_dim": "nothing else",
        "embedding_dim": "size",
        "state_hidden": "widths",
        "variant": "name",
        "preset": "name",
        "head": "name or None",
        "normalization": "name or None",
        "condition_on_obs": "flag",
    },
    "MTMlpPolicy": {"net_arch": "widths", "normalization": "name or None", "n_critics": "size"},
    "MultiHeadPolicy": {"net_arch": "some widths"},
    "SingleTaskPolicy": {"net_arch": "widths"},
    "MixtureOfExpertsPolicy": {"num_experts": "size", "gating_arch": "widths"},
    "HardRoutingPolicy": {"num_modules": "size", "controller_scale": "positive"},
    "CAREPolicy": {"num_encoders": "size", "encoder_arch": "widths"},
    "PaCoPolicy": {"num_parameter_sets": "size"},
    "MOOREPolicy": {"num_experts": "size", "net_arch": "some widths"},
    "FiLMPolicy": {"embedding_dim": "size", "net_arch": "some widths"},
    "BROPolicy": {"width": "size", "num_blocks": "size", "embedding_dim": "size"},
}


def policies() -> Iterator[BadInput]:
    for policy, options in OPTIONS.items():

        def make(policy: str = policy, **option: Any) -> Any:
            return MultiTaskSAC(policy, point_mass(), **{**SMALL, "policy_kwargs": option})

        for case in bad_values("policy", policy, make, options):
            if policy != "SoftModPolicy" or not case.text.endswith("is None"):  # which there means left open
                yield case
        for text, kwargs, mentions in (
            ("an unknown option", dict(layer=3), "layer"),
            ("an optimizer that is none", dict(optimizer_class="Adam"), "optimizer_class"),
            ("another thing as an optimizer", dict(optimizer_class=dict), "optimizer_class"),
            ("options that the optimizer lacks", dict(optimizer_kwargs=dict(momentun=1)), "momentun"),
            ("impossible options of the optimizer", dict(optimizer_kwargs=dict(betas=(2.0, 3.0))), "betas"),
        ):
            yield BadInput("policy", f"{policy}: {text}", later(make, **kwargs), mentions)
    box = spaces.Box(-1, 1, (5,), np.float32)
    yield from bad_values(
        "policy",
        "SoftModularExtractor",
        lambda **kwargs: SoftModularExtractor(**{"observation_space": box, "num_tasks": 2, **kwargs}),
        {"num_tasks": "size", "features_dim": "size"},
        {"num_tasks": "task"},
    )


# ---------------------------------------------------------------------------------------------- task sets


def task_sets() -> Iterator[BadInput]:
    def metaworld(tasks: Any = "reach-v3", **kwargs: Any) -> Any:
        return make_metaworld_env(tasks, **{"n_workers": 0, **kwargs})

    yield from bad_values(
        "tasks",
        "make_metaworld_env",
        metaworld,
        {
            "tasks": "anything else",
            "goals": "name or None",
            "seed": "seed",
            "max_episode_steps": "size",
            "reward_version": "name",
            "envs_per_task": "size",
            "terminate_on_success": "flag",
            "render_mode": "name or None",
            "wrapper": "nothing else",
        },
        {"tasks": ""},
    )
    for tasks, mentions in (
        ("MT11", "MT10"),
        ("reach", "reach-v3"),
        (["reach-v3", "reach-v3"], "2 times"),
        (["reach-v3", 5], "5"),
        (["reach-v3", ["push-v3"]], "push-v3"),
        (["MT10", "reach-v3"], "listed 2 times"),
        ([""], "Unknown task"),
        ("../MT10", "MT10"),
        ("MT10\0", "MT10"),
        ("x" * 100_000, "Unknown"),
    ):
        yield BadInput("tasks", f"the Meta-World tasks {str(tasks)[:40]}", later(metaworld, tasks), mentions)

    def multitask(tasks: Any = None, **kwargs: Any) -> Any:
        return make_multitask_env(_two() if tasks is None else tasks, **{"n_workers": 0, **kwargs})

    for what in JUNK:
        if what != "None":
            yield BadInput("tasks", f"the gymnasium tasks are {what}", later(multitask, JUNK[what]), "")
    yield from bad_values(
        "tasks",
        "make_multitask_env",
        multitask,
        {
            "seed": "seed",
            "max_episode_steps": "count or None",
            "envs_per_task": "size",
            "n_envs": "nothing else",
            "n_workers": "count from 0 or None",
            "restart_failed": "flag",
        },
    )
    for text, sources, mentions in (
        ("an unknown id", ["Pendulumm-v1"], "Pendulum-v1"),
        ("an old version", ["Pendulum-v0"], "Pendulum-v0"),
        ("a malformed id", ["what is this"], "what is this"),
        ("an unknown module", ["nowhere:Env-v0"], "nowhere"),
        ("a number", {"a": 3}, "3"),
        ("a number for a name", {1: PointMass}, "names"),
        ("a function that makes nothing", {"a": lambda: None}, "None"),
        ("a function that raises", {"a": lambda: 1 / 0}, "ZeroDivisionError"),
        ("a function with an argument", {"a": lambda goal: goal}, "'a'"),
        ("other actions", {"a": partial(PointMass, 0), "b": partial(gym.make, "Pendulum-v1")}, "action space"),
        ("an observation that is no array", {"a": Graph}, "cannot be flattened"),
        ("lambdas in a list", [lambda: PointMass(0)], "name"),
    ):
        yield BadInput("tasks", f"gymnasium: {text}", later(multitask, sources), mentions)

    def wrapped(**kwargs: Any) -> Any:
        return TaskEnv(**{"env": PointMass(0), "task_id": 0, "task_names": ["a", "b"], **kwargs})

    yield from bad_values(
        "tasks",
        "TaskEnv",
        wrapped,
        {"env": "anything else", "task_id": "index", "task_names": "anything else", "width": "count or None"},
        {"env": "", "task_names": "task"},
    )
    yield from bad_values(
        "normalisation",
        "MultiTaskVecNormalize",
        lambda **kwargs: MultiTaskVecNormalize(**{"venv": point_mass(), **kwargs}),
        {
            "venv": "anything else",
            "obs_statistics": "name",
            "clip_obs": "positive or infinite",
            "gamma": "share",
            "epsilon": "positive",
            "norm_reward": "flag",
        },
        {"venv": "VecEnv"},
    )
    for what in ("a word", "a list", "a thing", "None", "minus one"):
        yield BadInput("tasks", f"the task makers are {what}", later(MultiTaskVecEnv, JUNK[what]), "maker")


def _two() -> dict[str, Any]:
    return {"a": partial(PointMass, 0), "b": partial(PointMass, 1)}


# -------------------------------------------------------------------------------- evaluation, tables, networks


def evaluations() -> Iterator[BadInput]:
    yield from bad_values(
        "evaluation",
        "evaluate_tasks",
        lambda **kwargs: evaluate_tasks(**{"model": model(), "env": point_mass(), "n_eval_episodes": 1, **kwargs}),
        {
            "model": "anything else",
            "env": "anything else",
            "protocol": "name or None",
            "deterministic": "flag",
        },
        {"model": "predict", "env": ""},
    )
    for what in ("a word", "zero", "minus one", "NaN", "a list", "one and a half"):
        yield BadInput(
            "evaluation",
            f"n_eval_episodes is {what}",
            later(evaluate_tasks, model(), point_mass(), n_eval_episodes=JUNK[what]),
            "n_eval_episodes",
        )
        yield BadInput(
            "evaluation",
            f"options beside an env: seed is {what}",
            later(evaluate_tasks, model(), point_mass(), seed=JUNK[what]),
            "seed",
        )
    yield from bad_values(
        "evaluation",
        "MultiTaskEvalCallback",
        lambda **kwargs: MultiTaskEvalCallback(**{"eval_env": point_mass(), **kwargs}),
        {
            "eval_env": "anything else",
            "n_eval_episodes": "count",
            "eval_freq": "count from -1",
            "deterministic": "flag",
        },
    )
    yield from bad_values(
        "evaluation",
        "RoutingSnapshotCallback",
        partial(RoutingSnapshotCallback, "routing.npz"),
        {"every": "count"},
    )
    for what, value in JUNK.items():
        yield BadInput("evaluation", f"a method is {what}", later(get_method, value), "method")
        yield BadInput("evaluation", f"a table of {what}", later(parameter_table, value), "")
        yield BadInput("evaluation", f"a format is {what}", later(results_table, [], value), "format")
        yield BadInput("evaluation", f"statistics of {what}", later(aggregate, value), "core")
        yield BadInput(
            "evaluation",
            f"a network of {what} inputs",
            later(SoftModularNetwork, value, 2, 2),
            "input_dim",
        )
        if what != "zero":
            yield BadInput(
                "evaluation", f"a table of the last {what}", later(point_mass().episode_table, value), "last"
            )
