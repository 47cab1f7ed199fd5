"""Task sets by the names that experiments call them, and their ids in gymnasium. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym

from sb3_softmod.common.errors import ConfigurationError, nearest

#: The ids of gymnasium begin with it: "SoftMod/MT10-Conditioned-v3".
NAMESPACE = "SoftMod"

#: The paper's, and dm_control's own.
METAWORLD_HORIZON = 200
DM_CONTROL_HORIZON = 1000

# Those of metaworld.env_dict, whose import loads MuJoCo.
_METAWORLD_TASKS = """
    assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock hand-insert drawer-close drawer-open faucet-open faucet-close hammer handle-press-side handle-press
    handle-pull-side handle-pull lever-pull pick-place-wall pick-out-of-hole pick-place plate-slide plate-slide-side
    plate-slide-back plate-slide-back-side peg-insert-side peg-unplug-side soccer stick-push stick-pull push push-wall
    push-back reach reach-wall shelf-place sweep-into sweep window-open window-close
""".split()  # noqa: SIM905

_DM_CONTROL_TASKS = {
    "Walker": ("stand", "walk", "run"),
    "Hopper": ("stand", "hop"),
    "Finger": ("spin", "turn_easy", "turn_hard"),
    "Humanoid": ("stand", "walk", "run"),
}

#: What can be said of the envs of a suite, beside what a set says itself.
ENV_OPTIONS = {
    "metaworld": ("goals", "horizon", "seed", "reward_version", "terminate_on_success", "render_mode", "camera_name"),
    "dm_control": ("horizon", "seed", "render_mode"),
}


@dataclass(frozen=True)
class TaskSet:
    """Tasks that one policy learns.

    :param name: on the command line
    :param suite: where the tasks come from
    :param tasks: what that suite calls them
    :param version: of the id in gymnasium
    :param options: what tells this set from others of the same tasks, arguments of its envs
    """

    name: str
    suite: Literal["metaworld", "dm_control"]
    tasks: str | tuple[str, ...]
    version: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gym_id(self) -> str:
        """Its id in gymnasium."""
        version = f"-v{self.version}"
        return f"{NAMESPACE}/{self.name.removesuffix(version)}{version}"

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of :func:`.make_metaworld_env` or :func:`.make_dm_control_env` for this set.

        :param options: by the names of :data:`ENV_OPTIONS`. The horizon is not called ``max_episode_steps`` there,
            because ``gymnasium.make`` keeps an argument of that name for itself.
        :raises ConfigurationError: for an unknown name, with the nearest known
        """
        known = ENV_OPTIONS[self.suite]
        for name in options:
            if name not in known:
                raise ConfigurationError(f"Unknown env argument {name!r} of {self.name}: {nearest(name, known)}")
        arguments = {**self.options, **options}
        if "horizon" in arguments:
            arguments["max_episode_steps"] = arguments.pop("horizon")
        return arguments

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What one has to know to compare results: goals, horizon and reward version; None for what there is not.

        :param options: as in :meth:`arguments`
        """
        given = {**self.options, **options}
        horizon = given.get("horizon", METAWORLD_HORIZON if self.suite == "metaworld" else DM_CONTROL_HORIZON)
        return {
            "goals": given.get("goals"),
            "horizon": horizon,
            "reward_version": given.get("reward_version", "v2") if self.suite == "metaworld" else None,
        }


def full_name(name: str) -> str:
    """The name of a set that a short one stands for: "MT10" is MT10-Conditioned; any other name is itself."""
    return SHORT_NAMES[name][0] if name in SHORT_NAMES else name


def get_task_set(name: str) -> TaskSet:
    """The task set of a name, a short one too, or of an id; "MT10-Fixed+coffee-button-v3" is a set with further tasks.

    :raises ConfigurationError: for an unknown one, with the nearest names
    """
    if isinstance(name, str) and "+" in name:
        return _joined(name, [get_task_set(part) for part in name.split("+")])
    by_id = {task_set.gym_id: task_set for task_set in TASK_SETS.values()}
    found = None
    if isinstance(name, str):
        found = TASK_SETS.get(full_name(name)) or by_id.get(name)
    if found is None:
        near = nearest(str(name).removeprefix(f"{NAMESPACE}/"), [*SHORT_NAMES, *TASK_SETS], SHORT_NAMES)
        raise ConfigurationError(
            f"Unknown env {name!r}: {near} (Tasks of your own are for Python: sb3_softmod.make_multitask_env.)"
        )
    return found


def _joined(name: str, parts: Sequence[TaskSet]) -> TaskSet:
    """The tasks of several sets, as the first one has them."""
    first = parts[0]
    if any(part.suite != first.suite for part in parts):
        raise ConfigurationError(f"The tasks of {name} are not of one suite: {', '.join(p.suite for p in parts)}.")
    tasks = [task for part in parts for task in ((part.tasks,) if isinstance(part.tasks, str) else part.tasks)]
    return TaskSet(name, first.suite, tuple(tasks), first.version, first.options)


def _all_task_sets() -> list[TaskSet]:
    sets = [
        TaskSet(f"{tasks}-{title}", "metaworld", tasks, 3, dict(goals=goals))
        for tasks in ("MT10", "MT25", "MT50")
        for title, goals in (("Fixed", "fixed"), ("Conditioned", "random"))
    ]
    splits = [f"{benchmark}-{part}" for benchmark in ("ML10", "ML45") for part in ("train", "test")]
    for tasks in ("MT3", *splits, *(f"{task}-v3" for task in _METAWORLD_TASKS)):
        sets.append(TaskSet(tasks, "metaworld", tasks, 3, dict(goals="random")))
    sets += [
        TaskSet(f"DMC-{domain}", "dm_control", tuple(f"{domain.lower()}-{task}" for task in tasks), 0)
        for domain, tasks in _DM_CONTROL_TASKS.items()
    ]
    return sets


#: All named task sets. "Fixed" and "Conditioned" are the paper's names for one goal a task and for many.
TASK_SETS: dict[str, TaskSet] = {task_set.name: task_set for task_set in _all_task_sets()}


#: Meta-World's own names of sets, and what they leave open: the goals. They stand for the first, as in Meta-World.
SHORT_NAMES = {tasks: (f"{tasks}-Conditioned", f"{tasks}-Fixed") for tasks in ("MT10", "MT25", "MT50")}


def register_all() -> None:
    """Make the task sets known to ``gymnasium.make`` and ``gymnasium.make_vec``."""
    for task_set in TASK_SETS.values():
        register(task_set, task_set.gym_id)
    for name, (full, _) in SHORT_NAMES.items():
        register(TASK_SETS[full], f"{NAMESPACE}/{name}-v{TASK_SETS[full].version}")


def register(task_set: TaskSet, gym_id: str) -> None:
    """Make a task set known to gymnasium.

    :param gym_id: the id to give it
    """
    gym.register(
        gym_id,
        entry_point="sb3_softmod.envs.registered:make_env",
        vector_entry_point="sb3_softmod.envs.registered:make_vector_env",
        disable_env_checker=True,
        kwargs=dict(name=task_set.name),
    )
