"""``python -m nkf``, the same as the command ``nkf``."""

import sys

from nkf.cli import main

if __name__ == "__main__":
    sys.exit(main())
