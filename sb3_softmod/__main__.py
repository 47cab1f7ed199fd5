"""``python -m sb3_softmod`` is the command ``sb3-softmod``."""

from __future__ import annotations

import sys

from sb3_softmod.cli import main

if __name__ == "__main__":
    sys.exit(main())
