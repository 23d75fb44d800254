"""``python -m hushtune_server``: the same as the command ``hushtune``."""

import sys

from hushtune_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
