"""How large did a program become?"""

from pathlib import Path


def peak_bytes(pid: int | None = None) -> int:
    """Return the largest resident set of a process, this one by default, since it runs its program; 0 where nobody tells."""
    try:
        status = Path(f"/proc/{'self' if pid is None else pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
