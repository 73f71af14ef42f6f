"""The command ``nkf``, which is also ``python -m nkf``."""

import os
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    # pydantic would read the metadata of every installed package for plugins: a twentieth of a short command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from nkf.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
