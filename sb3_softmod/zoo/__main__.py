"""``python -m sb3_softmod.zoo train|enjoy|SCRIPT``, SCRIPT being one of rl_zoo3's: all_plots, record_video, ..."""

from __future__ import annotations

import runpy
import sys

from sb3_softmod.cli import main
from sb3_softmod.zoo.registration import short_env_ids

#: rl_zoo3's scripts that read what our runs wrote.
SCRIPTS = {
    "all_plots": "rl_zoo3.plots.all_plots",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
    "plot_train": "rl_zoo3.plots.plot_train",
    "push_to_hub": "rl_zoo3.push_to_hub",
    "record_video": "rl_zoo3.record_video",
    "rl_zoo3_enjoy": "rl_zoo3.enjoy",
}

if len(sys.argv) > 1 and sys.argv[1] in SCRIPTS:
    script = SCRIPTS[sys.argv.pop(1)]
    with short_env_ids():
        runpy.run_module(script, run_name="__main__", alter_sys=True)
else:
    sys.exit(main())
