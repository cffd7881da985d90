"""gzip files that say at their beginning how long they are and what they hold, so that nothing need be unpacked to see
that one is whole.

An extra field of the header (RFC 1952, 2.3.1.1), which every reader passes over, holds the file's size and a mark.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from crossvis_tl.files import clear_errors

# Magic, method, flags, time, level, system; the extra field's length, identifier, length; size of the file and mark.
HEADER = struct.Struct("<2sBBIBBH2sHQ16s")
EXTRA, UNKNOWN, OURS, LENGTH = 4, 255, b"cv", 24
LEVEL = 5


class Zipped:
    """A file that is written to. The same bytes each time: no name and no time in it."""

    def __init__(self, raw: IO[bytes], path: Path, mark: bytes):
        self.raw, self.path, self.mark = raw, path, mark
        self.deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self.sum, self.length = zlib.crc32(b""), 0
        self._put(_header(mark, 0))

    def write(self, content: bytes) -> None:
        """OSError naming the path that is to appear."""
        self.sum, self.length = zlib.crc32(content, self.sum), self.length + len(content)
        self._put(self.deflate.compress(content))

    def finish(self) -> None:
        self._put(self.deflate.flush() + struct.pack("<II", self.sum, self.length % 2**32))
        with clear_errors(self.path):
            size = self.raw.tell()
            self.raw.seek(0)
            self.raw.write(_header(self.mark, size))
            self.raw.flush()

    def _put(self, content: bytes) -> None:
        with clear_errors(self.path):
            self.raw.write(content)


@contextmanager
def zipped(draft: Path, path: Path, mark: bytes) -> Iterator[Zipped]:
    """Writes `draft`, which is to become `path`. `mark`: 16 bytes."""
    with clear_errors(path):
        raw = draft.open("xb")
    with raw:
        file = Zipped(raw, path, mark)
        yield file
        file.finish()


def is_whole(path: Path, mark: bytes) -> bool:
    """By its header: it was written with this mark, and is as long as it was."""
    with path.open("rb") as file:
        return file.read(HEADER.size) == _header(mark, path.stat().st_size)


def _header(mark: bytes, size: int) -> bytes:
    return HEADER.pack(b"\x1f\x8b", 8, EXTRA, 0, 0, UNKNOWN, 4 + LENGTH, OURS, LENGTH, size, mark)
