"""How do private token windows lie on disk between the client and its training child?"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import MalformedUpdate


def save_windows(path: Path, windows: NDArray[np.int64]) -> None:
    """Write private token windows (N, T) where only this user can read them."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    with path.open("wb") as file:
        np.save(file, windows, allow_pickle=False)


def load_windows(path: Path) -> NDArray[np.int64]:
    """Read token windows (N, T); `MalformedUpdate` for any other file."""
    try:
        windows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MalformedUpdate(f"{path.name}: not a readable array of token windows ({error})") from error
    if windows.ndim != 2 or windows.dtype != np.int64 or not len(windows):
        raise MalformedUpdate(f"{path.name}: token windows are int64 (N, T), got {windows.dtype} {windows.shape}")
    return windows
