"""``python -m sb3_softmod.zoo SCRIPT``: the scripts of rl_zoo3 that read what runs wrote."""

from __future__ import annotations

import runpy
import sys

from sb3_softmod.zoo.registration import register_methods, short_env_ids

PLOTS = ("all_plots", "plot_from_file", "plot_train")
SCRIPTS = {"record_video": "record_video", "rl_zoo3_enjoy": "enjoy"}


def run(script: str) -> None:
    """Run a script of rl_zoo3 where our methods and envs are known."""
    register_methods()
    with short_env_ids():
        if script in PLOTS:
            from rl_zoo3 import plots

            getattr(plots, script)()
        else:
            runpy.run_module(f"rl_zoo3.{SCRIPTS[script]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in (*PLOTS, *SCRIPTS):
        sys.exit(f"usage: python -m sb3_softmod.zoo SCRIPT ..., with a SCRIPT of {', '.join((*PLOTS, *SCRIPTS))}")
    run(sys.argv.pop(1))
