"""Every method under one name: the systems of the paper's tables and figures, and those the field compares with today.

A method is a policy, its options and the algorithm's options; training files, tables and notebooks all read this
registry. Nothing here imports torch until a model is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sb3_softmod.common.checks import require_choice
from sb3_softmod.published_settings import ENV_STEPS, MAX_GRAD_NORM, SCHEDULE, SIZES

if TYPE_CHECKING:
    from stable_baselines3.common.type_aliases import GymEnv

    from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
    from sb3_softmod.networks import MultiTaskNetwork
    from sb3_softmod.policies import MultiTaskSACPolicy

#: The authors' code clips for every method that it has.
_CLIPPED = {"max_grad_norm": MAX_GRAD_NORM["MT10"]}


@dataclass(frozen=True)
class Method:
    """One way to learn many tasks.

    :param title: the name in the paper's tables
    :param source: where it is compared, or where it comes from
    :param policy: a name in :data:`sb3_softmod.policies.POLICIES`, or a policy class of your own
    :param policy_kwargs: options of the policy's network
    :param options: arguments of :class:`.MultiTaskSAC`
    :param env_steps: the published budget by task set, environment steps over all tasks
    :param sizes: further options of the network, whose values differ from task set to task set
    :param default_kwargs: further options of the network, which a file of hyperparameters may change for all methods of
        its policy: sizes that do not define the method
    :param relative_params: parameters relative to Ours (Deep) in the paper's Table 2
    :param defined_by: the options that no file of hyperparameters replaces, as none replaces weights that are learned:
        the method would be another one
    """

    title: str
    source: str
    policy: str | type[MultiTaskSACPolicy]
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    env_steps: Mapping[str, int] = field(default_factory=lambda: dict(ENV_STEPS["ours"]))
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default_kwargs: Mapping[str, Any] = field(default_factory=dict)
    relative_params: float | None = None
    defined_by: tuple[str, ...] = ()

    @property
    def policy_class(self) -> type[MultiTaskSACPolicy]:
        """Its policy."""
        from sb3_softmod.policies import POLICIES

        return POLICIES[self.policy] if isinstance(self.policy, str) else self.policy

    @property
    def network_class(self) -> type[MultiTaskNetwork]:
        """The network of its actor and critics."""
        return self.policy_class.network_class

    def network_options(self, tasks: object) -> dict[str, Any]:
        """Options of the network on a task set.

        :param tasks: "MT10" or "MT50"; for anything else, the options that do not depend on it
        """
        sizes = {name: by_set[tasks] for name, by_set in self.sizes.items() if tasks in by_set}  # type: ignore[index]
        return {**self.policy_kwargs, **sizes}

    def make(self, env: GymEnv | str, **overrides: Any) -> MultiTaskSAC:
        """A model that is ready to learn; on the tasks of MT10 and MT50, with the published schedule and sizes.

        :param env: a multi-task env, the name of a Meta-World task or set, or a list of tasks
        :param overrides: further arguments of :class:`.MultiTaskSAC`; ``policy_kwargs`` are added to the method's own
        """
        from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
        from sb3_softmod.envs.make import as_env

        env = as_env(env, overrides.get("seed"))
        tasks = _published_set_of(env)
        schedule = {} if tasks is None else {name: by_set[tasks] for name, by_set in SCHEDULE.items()}
        own = join_kwargs(self.default_kwargs, self.network_options(tasks))
        policy_kwargs = join_kwargs(own, overrides.pop("policy_kwargs", None) or {})
        return MultiTaskSAC(self.policy, env, **{**schedule, **self.options, **overrides}, policy_kwargs=policy_kwargs)


def join_kwargs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The ``policy_kwargs`` of both; the second count where both have one, and ``critic_options`` are joined too.

    What the second says of the network counts for its critics as well, whatever the first said of those.
    """
    of_critics = {name: value for name, value in first.get("critic_options", {}).items() if name not in second}
    of_critics |= second.get("critic_options", {})
    joined = {name: value for name, value in {**first, **second}.items() if name != "critic_options"}
    return {**joined, "critic_options": of_critics} if of_critics else joined


def published_set(names: Iterable[str]) -> str | None:
    """Either "MT10" or "MT50", for which sizes and budgets are published; None for other tasks."""
    from sb3_softmod.envs.metaworld import resolve_task_names

    return next((tasks for tasks in ("MT10", "MT50") if set(names) == set(resolve_task_names(tasks))), None)


def _published_set_of(env: Any) -> str | None:
    from stable_baselines3.common.vec_env import VecEnv

    try:
        names = env.get_attr("task_names")[0] if isinstance(env, VecEnv) else env.get_wrapper_attr("task_names")
    except AttributeError:  # the model says what the env lacks
        return None
    return published_set(names)


def get_method(name: str) -> Method:
    """The method of a name.

    :raises ConfigurationError: for an unknown name, with the nearest ones
    """
    require_choice("method", name, METHODS)
    return METHODS[name]


_TABLE_2 = "Table 2, Figure 6a"


def _ours(
    title: str,
    source: str,
    loss_weighting: str | None = None,
    relative_params: float | None = None,
    **policy_kwargs: Any,
) -> Method:
    """The paper's own: with weights that make it what it is or, by default, Eq. 10's, which a file may replace."""
    options = {"loss_weighting": loss_weighting or "alpha", **_CLIPPED}
    definition = ("loss_weighting",) if loss_weighting else ()
    return Method(
        title, source, "SoftModPolicy", policy_kwargs, options, defined_by=definition, relative_params=relative_params
    )


def _multi_head(title: str, source: str, relative_params: float | None = None, **policy_kwargs: Any) -> Method:
    """MT-MH-SAC of some size."""
    steps = ENV_STEPS["mt_sac"]
    return Method(title, source, "MultiHeadPolicy", policy_kwargs, _CLIPPED, steps, relative_params=relative_params)


def _of_others(name: str, title: str, source: str, policy: str, **options: Any) -> Method:
    """A method of later work, with what was published under its name; the options are what it is."""
    return Method(title, source, policy, {}, options, ENV_STEPS[name], SIZES.get(name, {}), defined_by=tuple(options))


def _weighted(name: str, title: str, source: str, loss_weighting: str) -> Method:
    """MT-SAC with weights of the critics' losses that are learned."""
    return _of_others(name, title, source, "MTMlpPolicy", loss_weighting=loss_weighting)


#: A critic that predicts distributions of returns, with what it needs: rewards scaled to its atoms, temperatures that
#: fit scaled rewards. As in BRC (Nauman et al. 2025), as are decayed weights.
_DISTRIBUTIONAL = dict(
    critic="categorical",
    reward_scaling="per-task",
    ent_coef="auto_0.1",
    target_entropy="auto_0.5",
)
_DECAYED = dict(optimizer_kwargs=dict(weight_decay=1e-4, decoupled_weight_decay=True))


def _with_distribution(title: str, preset: str) -> Method:
    """The paper's network under such a critic."""
    network = dict(preset=preset, critic_options=dict(normalization="layer"), **_DECAYED)
    source = "this package: BRC's critic under the paper's network"
    return Method(title, source, "SoftModPolicy", network, _DISTRIBUTIONAL, defined_by=("critic",))


#: The methods by name, as written on the command line.
METHODS: dict[str, Method] = {
    "softmod_shallow": _ours("Ours (Shallow)", "Table 1, Figure 5", relative_params=1.0, preset="shallow"),
    "softmod_deep": _ours("Ours (Deep)", "Tables 1 and 2, Figures 5 and 6a", relative_params=1.0, preset="deep"),
    "softmod_shallow_wo_balance": _ours("Ours (Shallow, w/o Balance)", "Figure 6b", "uniform", preset="shallow"),
    "softmod_shallow_wo_obs_balance": _ours(
        "Ours (Shallow, w/o Obs & Balance)", "Figure 6b", "uniform", preset="shallow", condition_on_obs=False
    ),
    "softmod_official": _ours(
        "Ours (Shallow), released code",
        "the authors' released network, loss weights and gradient clipping",
        "log_alpha",
        preset="shallow",
        variant="official",
    ),
    "single_task_sac": Method("Single-task SAC", "section 5.6", "SingleTaskPolicy"),
    "mt_sac": Method("MT-SAC", "Table 1, Figure 5", "MTMlpPolicy", options=_CLIPPED, env_steps=ENV_STEPS["mt_sac"]),
    "mt_mh_sac": _multi_head("MT-MH-SAC", "Tables 1 and 2, Figures 5 and 6", 1.2),
    "mt_mh_sac_4": _multi_head("MT-MH-SAC-4", _TABLE_2, 1.6, net_arch=[400] * 4),
    "mt_mh_sac_5": _multi_head("MT-MH-SAC-5", _TABLE_2, 2.0, net_arch=[400] * 5),
    "mt_mh_sac_6": _multi_head("MT-MH-SAC-6", _TABLE_2, 2.4, net_arch=[400] * 6),
    "mt_mh_sac_4_wide": _multi_head("MT-MH-SAC-4-Wide", _TABLE_2, 3.3, net_arch=[600] * 4),
    "mt_mh_sac_5_wide": _multi_head("MT-MH-SAC-5-Wide", _TABLE_2, 4.2, net_arch=[600] * 5),
    "mt_mh_sac_balance": Method(
        "MT-MH-SAC-Balance",
        "Figure 6c",
        "MultiHeadPolicy",
        options=dict(loss_weighting="alpha", **_CLIPPED),
        env_steps=ENV_STEPS["mt_sac"],
        defined_by=("loss_weighting",),
    ),
    "mix_expert": Method("Mix-Expert", "Table 1, Figure 5", "MixtureOfExpertsPolicy", options=_CLIPPED),
    "hard_routing": Method("Hard Routing", "Table 1, Figure 5", "HardRoutingPolicy", options=_CLIPPED),
    "care": _of_others("care", "CARE", "Sodhani et al. 2021, without metadata", "CAREPolicy"),
    "paco": _of_others("paco", "PaCo", "Sun et al. 2022", "PaCoPolicy"),
    "moore": _of_others("moore", "MOORE", "Hendawy et al. 2024", "MOOREPolicy"),
    "film": _of_others("film", "FiLM", "Perez et al. 2018", "FiLMPolicy"),
    "mt_sac_pcgrad": _of_others(
        "mt_sac_pcgrad", "MT-SAC + PCGrad", "Yu et al. 2020", "MTMlpPolicy", gradient_surgery="pcgrad"
    ),
    "mt_sac_cagrad": _of_others(
        "mt_sac_cagrad", "MT-SAC + CAGrad", "Liu et al. 2021", "MTMlpPolicy", gradient_surgery="cagrad"
    ),
    "mt_sac_nash_mtl": _of_others(
        "mt_sac_nash_mtl", "MT-SAC + Nash-MTL", "Navon et al. 2022", "MTMlpPolicy", gradient_surgery="nash_mtl"
    ),
    "mt_sac_fairgrad": _of_others(
        "mt_sac_fairgrad", "MT-SAC + FairGrad", "Ban and Ji 2024", "MTMlpPolicy", gradient_surgery="fairgrad"
    ),
    "mt_sac_gradnorm": _weighted("mt_sac_gradnorm", "MT-SAC + GradNorm", "Chen et al. 2018", "gradnorm"),
    "mt_sac_famo": _weighted("mt_sac_famo", "MT-SAC + FAMO", "Liu et al. 2023", "famo"),
    "mt_sac_uncertainty": _weighted("mt_sac_uncertainty", "MT-SAC + uncertainty", "Kendall et al. 2018", "uncertainty"),
    "softmod_shallow_categorical": _with_distribution("Ours (Shallow, categorical)", "shallow"),
    "softmod_deep_categorical": _with_distribution("Ours (Deep, categorical)", "deep"),
    "brc": Method(
        "BRC",
        "Nauman et al. 2025",
        "BROPolicy",
        _DECAYED,
        dict(critic_target="mean", **_DISTRIBUTIONAL),
        ENV_STEPS["brc"],
        default_kwargs=dict(width=256, num_blocks=1, critic_options=dict(width=4096, num_blocks=2)),
    ),
}
