"""Where does Prometheus find the processes of a run? A list in the format of its file_sd_configs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def file_sd(addresses: Mapping[str, str], *, roles: Mapping[str, str]) -> list[dict[str, object]]:
    """Return one entry for each process by name, with its address, and ``role`` and ``process`` as labels."""
    return [
        {"targets": [address], "labels": {"role": roles[name], "process": name}} for name, address in sorted(addresses.items())
    ]


def write_targets(path: Path, targets: Sequence[Mapping[str, object]]) -> None:
    """Replace the list as a whole: Prometheus reads the file again whenever it changes."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(targets, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
