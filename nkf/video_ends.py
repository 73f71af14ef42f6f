"""Where a video file ends by its own account, which shows whether some of it is missing."""

from pathlib import Path
from typing import BinaryIO

_MP4_PARTS = frozenset(
    b"ftyp styp pdin moov moof mfra mfro mdat free skip wide uuid udta meta meco sidx ssix prft emsg pnot".split()
)


def is_cut_off(path: Path) -> bool:
    """Whether a file is shorter than its own headers say; FFmpeg ends at such a place without a word.

    Matroska and WebM give the size of the one segment, MP4, MOV and AVI of each of their parts; others are not asked.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(12)
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            end = _segment_end(stream)
        elif head.startswith(b"RIFF") or head[4:8] in _MP4_PARTS:
            end = _last_part_end(stream, size, riff=head.startswith(b"RIFF"))
        else:
            return False
    return end is not None and end > size


def _segment_end(stream: BinaryIO) -> int | None:
    """Where a Matroska file's segment ends; None if it does not say, as a live recording."""
    stream.seek(4)
    stream.seek(_variable_size(stream) or 0, 1)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return None
    size = _variable_size(stream)
    return None if size is None else stream.tell() + size


def _variable_size(stream: BinaryIO) -> int | None:
    """A size of 1 to 8 bytes, whose first byte tells how many they are; all ones: not known."""
    first = int.from_bytes(stream.read(1), "big")  # 0 at the end of the file
    length = 9 - first.bit_length()
    value = int.from_bytes(bytes([first & (0xFF >> length)]) + stream.read(length - 1), "big")
    return None if value == (1 << 7 * length) - 1 else value


def _last_part_end(stream: BinaryIO, file_size: int, *, riff: bool) -> int | None:
    """Where the last part that begins in the file ends; None if that cannot be told."""
    position = 0
    while position + 8 <= file_size:
        stream.seek(position)
        head = stream.read(16)
        if riff:
            size = 8 + int.from_bytes(head[4:8], "little")
            size += size % 2
        else:
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
        known = head[:4] == b"RIFF" and size <= 0xFFFFFFF0 if riff else head[4:8] in _MP4_PARTS
        if size < 8 or not known:
            return None  # to the end of the file, not told, or something that was put behind
        position += size
    return position
