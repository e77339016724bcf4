"""A text in pieces that draws carry: a few draws, whichever, contain all of it.

PyMC passes only stats from a step method to the result, one value for each draw. Users slice, thin,
concatenate and reorder draws. So each draw carries the sum modulo 2 of some blocks of the
compressed text. A number that it also carries chooses these blocks at random. This is a random
linear fountain code [1]_. About n + 6 draws, whichever, determine n blocks by elimination.

.. [1] MacKay, D. J. C. (2005). Fountain codes. IEE Proceedings Communications, 152, 1062-1068.
   https://doi.org/10.1049/ip-com:20050237
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

LAYOUT = 1  # of a packet: this number, length of the data (3 bytes), checksum (4), number (4), sum
BLOCK = 64  # bytes: a longer one would need fewer draws, and more memory for each
HEADER = 12
POOL = 1000  # packets: of 20 draws, fewer than one has that of another
PACKET = HEADER + BLOCK
EMPTY = np.zeros(PACKET, dtype=np.uint8)  # carries nothing


@dataclass(frozen=True)
class Fountain:
    """Source of packets.

    Attributes
    ----------
    pool : ndarray of uint8, shape (m, PACKET)
        Packets to choose from: far more than are needed, so that few are chosen twice.
    """

    pool: Bytes

    @classmethod
    def of(cls, text: str) -> "Fountain":
        """Compress a text, and add up blocks of it."""
        data = zlib.compress(text.encode(), zlib.Z_BEST_COMPRESSION)
        words = np.frombuffer(data + bytes(-len(data) % BLOCK), np.uint64).reshape(-1, BLOCK // 8)
        numbers = np.arange(POOL + 8 * len(words), dtype=np.uint32)
        sums = np.zeros((len(numbers), BLOCK // 8), dtype=np.uint64)
        for chosen, block in zip(_chosen(numbers, len(words)).T, words, strict=True):
            sums[chosen] ^= block
        header = bytes([LAYOUT]) + len(data).to_bytes(3) + zlib.crc32(data).to_bytes(4)
        columns = [
            np.tile(np.frombuffer(header, np.uint8), (len(numbers), 1)),
            numbers.astype(">u4")[:, None].view(np.uint8),
            sums.view(np.uint8),
        ]
        return cls(np.concatenate(columns, axis=1))

    def packets(self, chain: int, sweep: Integers, particle: Integers) -> Bytes:
        """Packets for draws, shape (n, PACKET), chosen by what tells them apart."""
        x = np.uint64(chain) << np.uint64(48) ^ sweep.astype(np.uint64) << np.uint64(20)
        return self.pool[_mixed(x ^ particle.astype(np.uint64)) % np.uint64(len(self.pool))]


def texts(packets: Bytes) -> tuple[list[str], int]:
    """All texts that packets belong to.

    Parameters
    ----------
    packets : ndarray of uint8, shape (n, PACKET)
        In any order, from any number of texts, empty ones as well.

    Returns
    -------
    told : list of str
        Texts that are complete, in the order in which the packets come.
    incomplete : int
        Number of other texts that have too few packets.

    Raises
    ------
    ValueError
        If a packet has an unknown layout.
    """
    packets = packets[packets[:, 0] != 0]
    if unknown := set(packets[:, 0].tolist()) - {LAYOUT}:
        raise ValueError(f"The stat `made_by` has the layout {min(unknown)}, which is unknown.")
    headers, first, which = np.unique(
        packets[:, :8], axis=0, return_index=True, return_inverse=True
    )
    told, incomplete = [], 0
    for k in np.argsort(first):
        size = int.from_bytes(headers[k, 1:4].tobytes())
        data = _solve(packets[which.ravel() == k], size)
        if data is None or zlib.crc32(data) != int.from_bytes(headers[k, 4:].tobytes()):
            incomplete += 1
        else:
            told.append(zlib.decompress(data).decode())
    return told, incomplete


def _solve(packets: Bytes, size: int) -> bytes | None:
    """Data of `size` bytes from packets of one text, or None if they are too few."""
    n_blocks = -(-size // BLOCK)
    numbers, first = np.unique(packets[:, 8:HEADER].copy().view(">u4").ravel(), return_index=True)
    rows = _chosen(numbers.astype(np.uint32), n_blocks)
    sums = packets[first, HEADER:].copy().view(np.uint64)
    for k in range(n_blocks):
        candidates = np.flatnonzero(rows[k:, k])
        if not len(candidates):
            return None
        pivot = k + candidates[0]
        rows[[k, pivot]], sums[[k, pivot]] = rows[[pivot, k]], sums[[pivot, k]]
        others = rows[:, k].copy()
        others[k] = False
        rows[others] ^= rows[k]
        sums[others] ^= sums[k]
    return sums[:n_blocks].tobytes()[:size]


def _chosen(numbers: NDArray[np.uint32], n_blocks: int) -> NDArray[np.bool_]:
    """Which blocks the packets with these numbers are sums of, shape (n, n_blocks)."""
    x = numbers.astype(np.uint64)[:, None] << np.uint64(32) | np.arange(n_blocks, dtype=np.uint64)
    return (_mixed(x) & np.uint64(1)).astype(bool)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output function of the generator splitmix64: each bit depends on all bits of `x`."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
