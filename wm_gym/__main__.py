"""``python -m wm_gym`` is the same as ``wm-gym``."""

import sys

from wm_gym.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
