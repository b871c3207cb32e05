"""Growing files: complete parts on any disk."""

import errno
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.formats.files import GrowingFile


class Disk(io.FileIO):
    """A file on a disk with limited room, which accepts only a few bytes at once."""

    def __init__(self, path, room, at_once):
        super().__init__(path, "wb")
        self._room, self._at_once = room, at_once

    def write(self, data):
        taken = bytes(data[: min(self._at_once, max(0, self._room - self.tell()))])
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(taken)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.binary(min_size=1, max_size=9), max_size=6), room=st.integers(0, 60), at_once=st.integers(1, 9)
)  # fmt: skip
def test_a_file_ends_with_a_whole_part(tmp_path, parts, room, at_once):
    file = GrowingFile(Disk(tmp_path / "file", room, at_once))
    expected = b""
    for part in parts:
        if len(expected) + len(part) <= room:
            file.append(part)
            expected += part
        else:
            with pytest.raises(OSError, match="No space"):
                file.append(part)
        assert (tmp_path / "file").read_bytes() == expected and file.size == len(expected)
    file.close()


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_that_is_not_kept_takes_no_other_with_it(tmp_path, keep):
    ours, theirs, gone = (GrowingFile.make(tmp_path / name, overwrite=False) for name in ("ours", "theirs", "gone"))
    (tmp_path / "theirs").unlink()
    (tmp_path / "theirs").write_bytes(b"another run's")
    (tmp_path / "gone").unlink()
    for file in (ours, theirs, gone):
        file.close(keep=keep)
    assert (tmp_path / "ours").exists() is keep
    assert (tmp_path / "theirs").read_bytes() == b"another run's" and not (tmp_path / "gone").exists()
