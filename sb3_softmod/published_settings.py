"""What was published of the comparison on MT10 and MT50: one table, with the source beside each number.

Sections and tables are those of the paper (Yang et al. 2020). What it does not say is what its authors' code says:
``Soft-Module`` is github.com/RchalYang/Soft-Module at e6d7c8a. Of the methods of others, ``mtrl`` is
facebookresearch/mtrl (CARE's authors), ``MOORE`` AhmedMagdyHendawy/MOORE at 35fd925, ``PaCo`` TToTMooN/paco-mtrl, and
``Meta-World+`` rainx0r/metaworld-algorithms, with which Meta-World's authors compare them all (arXiv 2505.11289).

A comparison has one schedule, so envs, replay, batches, learning rates and warm-up are the paper's for every method;
budget, network and clipping are the method's own. What the others' code has instead, and is not taken over: 1,500
warm-up steps a task (mtrl: random, and then as many updates at once; MOORE: the actor learns from step 3,000 on),
episodes of 150 steps (mtrl, MOORE), replay of 1e6 in all (mtrl) or of 1e6 and 1e5 a task (MOORE, on MT10 and MT50), a
learning rate of 1e-4 for the temperatures and log standard deviations of at least -10 (MOORE, PaCo), normalised
rewards (mtrl).

Unknown: the networks and settings of Mix-Expert and Hard Routing, and anything of single-task SAC's training, whose
scripts were not released; CARE's command and PaCo's settings on MT50 (those of MT10 were released; the numbers below
are of a file for Meta-World+'s code whose author is not known); how long episodes on MT50 were, for the authors' file
allows 1,000 steps and their version of Meta-World, in which tasks end by themselves, was not at hand; and what Table 2
counts, see :data:`sb3_softmod.runs.parameters.NOTE`.
"""

from __future__ import annotations

from typing import Any


class Published(dict[str, Any]):
    """A setting by task set.

    :param mt10: its value on MT10
    :param mt50: its value on MT50
    :param source: where it is written
    """

    def __init__(self, mt10: Any, mt50: Any, source: str) -> None:
        super().__init__(MT10=mt10, MT50=mt50)
        self.source = source


_FILES = "Soft-Module, meta_config/mt10 and mt50"

#: Arguments of :class:`.MultiTaskSAC`, the same for every method.
SCHEDULE: dict[str, Published] = {
    "learning_rate": Published(3e-4, 3e-4, f"{_FILES}: plr, qlr; the temperatures have plr (mt_sac.py)"),
    "gamma": Published(0.99, 0.99, f"{_FILES}: discount"),
    "tau": Published(0.005, 0.005, f"{_FILES}: tau"),
    "batch_size": Published(1_280, 6_400, f"{_FILES}: batch_size, 128 of each task (replay_buffers/shared/base.py)"),
    "buffer_size": Published(1_000_000, 10_000_000, f"{_FILES}: replay_buffer.size, shared out over the tasks"),
    # The code takes 200 steps and then 200 updates, because its envs run beside the learner: the same ratio.
    "train_freq": Published(1, 1, f"{_FILES}: epoch_frames 200 to opt_times 200"),
    "gradient_steps": Published(1, 1, f"{_FILES}: epoch_frames 200 to opt_times 200"),
    "learning_starts": Published(40_000, 200_000, f"{_FILES}: pretrain_epochs 20 of epoch_frames 200, 4,000 a task"),
    "policy_at_warmup": Published(True, True, "Soft-Module, off_rl_algo.py: pretrain collects as training does"),
}

#: Of the envs.
ENVS: dict[str, Published] = {
    "n_envs": Published(10, 50, "Soft-Module, README: worker_nums, one for each task"),
    "horizon": Published(200, 200, f"{_FILES}: max_episode_frames of MT10, epoch_frames of both"),
}

_MTRL = "mtrl, docs, baseline.rst: num_train_steps 2,000,000 of each task on MT10; MT50 as much a task"

_FAMO = "Cranial-XIX/FAMO, mtrl_files/run.sh: num_train_steps 2,000,000 of each task on MT10"

#: Environment steps, over all tasks, by method. The files of Soft-Module have 15 and 50 million for MT-SAC too.
ENV_STEPS: dict[str, Published] = {
    "ours": Published(15_000_000, 50_000_000, "section 5.2: our method, Mix-Expert and Hard Routing"),
    "mt_sac": Published(20_000_000, 100_000_000, "section 5.2: MT-SAC and MT-MH-SAC"),
    "care": Published(20_000_000, 100_000_000, _MTRL),
    "film": Published(20_000_000, 100_000_000, _MTRL),
    "mt_sac_pcgrad": Published(20_000_000, 100_000_000, _MTRL),
    # Whose c, on MT50, is 0.5 and not the 0.9 of MT10, which "cagrad" has: gradient_surgery_kwargs=dict(c=0.5).
    "mt_sac_cagrad": Published(20_000_000, 100_000_000, "CAGrad, mtrl_files/run.sh: num_train_steps as mtrl's"),
    "mt_sac_nash_mtl": Published(20_000_000, 100_000_000, "as CAGrad, whose comparison on MT10 the paper extends"),
    "mt_sac_fairgrad": Published(20_000_000, 100_000_000, "FairGrad, mtrl_files/run.sh: num_train_steps as mtrl's"),
    "mt_sac_gradnorm": Published(20_000_000, 100_000_000, f"{_MTRL}; on MT50 not compared"),
    "mt_sac_famo": Published(20_000_000, 100_000_000, f"{_FAMO}; as much a task on MT50, which it has not"),
    "mt_sac_uncertainty": Published(20_000_000, 100_000_000, f"{_FAMO}; as much a task on MT50, which it has not"),
    "moore": Published(20_000_000, 100_000_000, "MOORE, run/metaworld: n_epochs 20 of n_steps 100,000 of each task"),
    "brc": Published(10_000_000, 50_000_000, "arXiv 2505.23150: 1 million of each of 50 tasks; on MT10 as much a task"),
    # The authors' own file goes on to 50 million on MT10.
    "paco": Published(20_000_000, 100_000_000, "Meta-World+, examples/paco_mt10.py; of MT50 unknown, see above"),
}

#: Of the actor and of each critic: 1 in the code, whose critics' losses lack SB3's factor 1/2. For every method of the
#: paper but single-task SAC; mtrl, MOORE and PaCo do not clip.
MAX_GRAD_NORM = Published([1.0, 0.5], [1.0, 0.5], "Soft-Module, mt_sac.py: grad_clip, which every script leaves on")

_NETWORKS = "Meta-World+, config/nn.py, after the paper"

#: Options of the networks that depend on the task set, by method.
SIZES: dict[str, dict[str, Published]] = {
    "care": {"num_encoders": Published(6, 10, f"{_NETWORKS}; mtrl's command for MT10 has 4")},
    "paco": {"num_parameter_sets": Published(5, 20, "PaCo, metaworld_mt10_paco_conf.py; of MT50 unknown, see above")},
    "moore": {"num_experts": Published(4, 6, f"{_NETWORKS}; MOORE's scripts leave it open")},
}
