"""Damage in the write-ahead log that SQLite leaves beside a database when a process is killed.

SQLite stops at the first frame of the log with a wrong checksum, because an unfinished write looks
like this. If later frames of the same log follow, the write was finished. Then bits have changed,
and SQLite would leave out finished evaluations.
"""

import struct
from pathlib import Path

HEADER, FRAME = 32, 24  # bytes; https://www.sqlite.org/fileformat2.html#walformat
ORDERS = {0x377F0683: ">", 0x377F0682: "<"}  # of the numbers that are summed, by the magic


def damage(path: Path) -> str:
    """Damage of a write-ahead log, in words. Empty if there is no damage, or no log.

    Parameters
    ----------
    path : Path
        The log. Other processes may be writing to it.
    """
    found = _damage(path)
    return found and _damage(path)  # read again, as it may have been begun anew meanwhile


def _damage(path: Path) -> str:
    try:
        log = path.read_bytes()
    except FileNotFoundError:
        return ""
    if len(log) < HEADER:
        return ""
    magic, _, page, _, *salts, first, second = struct.unpack(">8I", log[:HEADER])
    order = ORDERS.get(magic)
    if order is None or (sums := _sums(log[:24], order, (0, 0))) != (first, second):
        return "its header has changed"
    frames = range(HEADER, len(log) - FRAME - page + 1, FRAME + page)
    ours = [struct.unpack(">2I", log[k + 8 : k + 16]) == tuple(salts) for k in frames]
    for i, start in enumerate(frames):
        if not any(ours[i:]):
            return ""
        sums = _sums(
            log[start : start + 8] + log[start + FRAME : start + FRAME + page], order, sums
        )
        if not ours[i] or sums != struct.unpack(">2I", log[start + 16 : start + FRAME]):
            return f"page {i} of {len(frames)} has changed" if any(ours[i + 1 :]) else ""
    return ""


def _sums(part: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Checksums, which continue earlier ones."""
    first, second = sums
    words = struct.unpack(f"{order}{len(part) // 4}I", part)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
