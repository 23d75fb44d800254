"""Is a full or closed disk told from a defect of ours?"""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from hushtune_common.errors import ConfigError, StorageFull
from hushtune_common.store.disk import disk_fault, full_disk_is_typed, sync_data


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_a_fault_of_the_world(number: int) -> None:
    fault = disk_fault(OSError(number, "said by the system", "/state/journal"))
    assert isinstance(fault, StorageFull)
    assert "/state/journal" in str(fault)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_written_is_named_as_a_setting(number: int) -> None:
    fault = disk_fault(OSError(number, "said by the system", "/state/journal"))
    assert isinstance(fault, ConfigError)
    assert fault.field == "/state/journal"


@pytest.mark.parametrize(
    "error", [OSError(errno.ECONNRESET, "reset"), ValueError("no disk in sight"), OSError("without a number")]
)
def test_anything_else_is_not_blamed_on_the_disk(error: Exception) -> None:
    assert disk_fault(error) is None
    with pytest.raises(type(error)), full_disk_is_typed():
        raise error


def test_a_library_that_quotes_the_system_is_understood(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SafetensorError) as caught:
            save_file({"x": np.zeros(1000, dtype=np.float32)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(disk_fault(caught.value), StorageFull)


def test_bytes_are_made_durable_where_there_is_no_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.delattr(os, "fdatasync")
    with (tmp_path / "file").open("wb") as file:
        sync_data(file.fileno())
        assert synced == [file.fileno()]
