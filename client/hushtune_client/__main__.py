"""``python -m hushtune_client``: the same as the command ``hushtune-client``."""

import sys

from hushtune_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
