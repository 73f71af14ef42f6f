"""Near-duplicate face pictures: a perceptual hash, and the search for close hashes in different splits.

The hash is the signs of the 128 lowest frequencies of the picture's cosine transform. Measured on 21 November 2026 on
51,808 different face photos (benchmarks/near_duplicates.py): up to distance 16, all copies of JPEG quality 50 to 90,
at half the size, grey, or 20 % darker or lighter are found (99.9 % or more), 98 % of those with up to 2 % cropped off
each border, 81 % with up to 3 %, and 16 % with the full 3 % off all of them. Of the 1,522 pairs that close, four were
seen to be different photos, 0.8 in 10,000 pictures; at distance 17 it is six, at 18 nine. Where false pairs with a
mirrored picture (those that are mirrored copies left out) are at most 1 in 10,000 pictures, which is at distance 18
here, 89 % of the crops of up to 3 % are found; a difference hash finds 44 % with 128 bits, and 91 % with 242.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.images import ImageRGB

HASH_BITS = 128
DEFAULT_DISTANCE = 16

SIDE = 32
SILENT = 1e-2  # coefficients up to this, in grey levels, count as none: of a plain picture they are rounding errors

KEY_BITS = 24  # of a band at most: each bit more is one look-up more, and so many tell any collection's pictures apart
CHUNK = 1 << 19  # comparisons made at once, about 20 MB
MAX_COMPARISONS = 5_000_000_000  # about a minute; see `Similar.note`
MAX_PAIRS = 2_000_000

Hashes = NDArray[np.uint8]  # (N, n)
Words = NDArray[np.uint64]  # (N, ceil(n / 8)), the same bits
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Similar:
    """Close pairs of hashes in different groups.

    Attributes:
        pairs: (P, 2) rows, the smaller one first; in ascending order.
        distances: (P,) bits that differ.
        note: one sentence about what was left out where too many hashes look alike, empty when nothing was.
    """

    pairs: Rows
    distances: NDArray[np.int64]
    note: str = ""


def perceptual_hash(image_rgb: ImageRGB) -> NDArray[np.uint8]:
    """Hash the coarse structure of a picture: harmless changes flip few of its bits, another picture about half.

    Args:
        image_rgb: (H, W, 3) uint8; colour does not matter, nor does size or aspect.

    Returns:
        (16,) uint8, `HASH_BITS` bits packed. A picture without structure has no bit set.
    """
    grey = Image.fromarray(image_rgb).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    coefficients = _COSINES @ small @ _COSINES.T
    return np.packbits(coefficients[_LOWEST] > SILENT)


def near_duplicates(hashes: Hashes, groups: NDArray[np.integer], max_distance: int = DEFAULT_DISTANCE) -> Similar:
    """Find all pairs of hashes that differ in at most `max_distance` bits and belong to different groups.

    Exact without comparing all pairs: where k bands of bits differ in at most 2 k - 1 bits together, some band differs
    in at most one, so only hashes that have a band in common, but for one bit, are compared.

    Args:
        hashes: (N, n) uint8, packed bits.
        groups: (N,) codes, of the split for instance.
        max_distance: in bits, from 0 to less than 8 n.

    Raises:
        ValueError: when the arrays do not fit each other, or the distance is out of range.
    """
    count, size = hashes.shape
    if groups.shape != (count,):
        raise ValueError(f"groups of shape {groups.shape} for {count} hashes")
    if not 0 <= max_distance < 8 * size:
        raise ValueError(f"max_distance {max_distance}: expected 0 to {8 * size - 1}")
    order, starts, counts = _same(hashes, groups)
    firsts = order[starts]
    group = groups[firsts]
    codes = np.unique(group)
    search = _Search(_words(hashes[firsts]), max_distance, len(codes) - 1)
    bits = np.unpackbits(hashes[firsts], axis=1)
    for code in codes[:-1]:
        search.join(bits, np.flatnonzero(group == code), np.flatnonzero(group > code))
    pairs, distances, unlisted = _expand(order, starts, counts, search.pairs(), search.distances())
    return Similar(pairs, distances, _note(search.skipped, unlisted))


def _cosines(side: int) -> NDArray[np.float32]:
    """The orthonormal cosine transform, (frequencies, samples)."""
    frequency, sample = np.arange(side)[:, None], np.arange(side)[None]
    matrix = np.cos(np.pi * (2 * sample + 1) * frequency / (2 * side)) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def _lowest(bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertical and horizontal frequencies in ascending order of their sum, without the mean brightness."""
    vertical, horizontal = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    chosen = np.lexsort((vertical, vertical + horizontal))[1 : bits + 1]
    return vertical[chosen], horizontal[chosen]


_COSINES = _cosines(SIDE)
_LOWEST = _lowest(HASH_BITS)


def _words(hashes: Hashes) -> Words:
    padded = np.pad(hashes, ((0, 0), (0, -hashes.shape[1] % 8)))
    return np.ascontiguousarray(padded).view(np.uint64)


def _same(hashes: Hashes, groups: NDArray[np.integer]) -> tuple[Rows, Rows, Rows]:
    """Rows sorted so that equal hashes of a group stand together; where each such run starts, and its length.

    A thousand blank pictures are then one hash to search for.
    """
    count = len(hashes)
    columns = [*_words(hashes).T, groups]
    order = np.lexsort(columns)
    changes = np.zeros(count, bool)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[order][1:] != column[order][:-1]
    starts = np.flatnonzero(changes)
    return order, starts, np.diff(starts, append=count)


class _Search:
    """Joins of groups, and the pairs that they found."""

    def __init__(self, words: Words, max_distance: int, joins: int) -> None:
        self.words = words
        self.max_distance = max_distance
        self.bands = max_distance // 2 + 1
        self.share = MAX_COMPARISONS // max(joins * self.bands * (KEY_BITS + 1), 1)  # comparisons of one look-up
        self.skipped = 0  # comparisons
        self._codes: Rows = np.zeros(0, np.int64)  # row * N + row of each pair, unique
        self._new: list[Rows] = []  # codes found since, with repetitions

    def pairs(self) -> Rows:
        return np.stack(np.divmod(self._codes, max(len(self.words), 1)), axis=1)

    def distances(self) -> NDArray[np.int64]:
        left, right = self.pairs().T
        return np.bitwise_count(self.words[left] ^ self.words[right]).sum(axis=1, dtype=np.int64)

    def join(self, bits: NDArray[np.uint8], queries: Rows, others: Rows) -> None:
        """Add all close pairs of a row of `queries` and one of `others`."""
        if len(queries) > len(others):
            queries, others = others, queries
        for band in range(self.bands):
            # Bits from all over the hash: neighbouring frequencies depend on each other, distant ones hardly do.
            chosen = bits[:, band :: self.bands][:, :KEY_BITS]
            # With an even distance: should each other band differ in two bits or more, none is left for the last one.
            exact = band == self.bands - 1 and self.max_distance % 2 == 0
            flips = [0] if exact else [0, *(1 << k for k in range(chosen.shape[1]))]
            self._join_band(_keys(chosen), flips, queries, others)
            self._merge()

    def _join_band(self, keys: NDArray[np.uint32], flips: list[int], queries: Rows, others: Rows) -> None:
        queries, others = (rows[np.argsort(keys[rows], kind="stable")] for rows in (queries, others))
        for flip in flips:
            wanted = keys[queries] ^ np.uint32(flip)
            low = np.searchsorted(keys[others], wanted, "left")
            lengths = self._within_share(np.searchsorted(keys[others], wanted, "right") - low)
            left_to_do = int(lengths.sum())
            for left, right in _candidates(queries, others, low, lengths):
                if self._full():
                    self.skipped += left_to_do
                    break
                self._new.append(self._close(left, right))
                left_to_do -= len(left)

    def _within_share(self, lengths: Rows) -> Rows:
        """Leave out the queries with most candidates where all of them would take too long."""
        total = int(lengths.sum())
        if total > self.share:
            ascending = np.sort(lengths)
            too_many = ascending[int(np.searchsorted(np.cumsum(ascending), self.share, "right"))]
            lengths = np.where(lengths < too_many, lengths, 0)
            self.skipped += total - int(lengths.sum())
        return lengths

    def _full(self) -> bool:
        if sum(map(len, self._new)) > MAX_PAIRS:
            self._merge()
        return len(self._codes) > MAX_PAIRS

    def _merge(self) -> None:
        self._codes = np.unique(np.concatenate([self._codes, *self._new]))
        self._new = []

    def _close(self, left: Rows, right: Rows) -> Rows:
        """Codes of those pairs that are close."""
        distance = np.zeros(len(left), np.uint16)
        for word in self.words.T:
            distance = distance + np.bitwise_count(word[left] ^ word[right])
            near = distance <= self.max_distance  # most pairs are told apart by their first 64 bits
            left, right, distance = left[near], right[near], distance[near]
        return np.minimum(left, right) * len(self.words) + np.maximum(left, right)


def _keys(bits: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Read each row of (N, k) bits as a number, k up to `KEY_BITS`."""
    return bits.astype(np.uint32) @ (np.uint32(1) << np.arange(bits.shape[1], dtype=np.uint32))


def _candidates(queries: Rows, others: Rows, low: Rows, lengths: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of each query k with ``others[low[k] : low[k] + lengths[k]]``, about `CHUNK` of them at once."""
    some = np.flatnonzero(lengths)
    low, lengths = low[some], lengths[some]
    ends = np.cumsum(lengths)
    start = 0
    while start < len(some):
        done = ends[start] - lengths[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK, "right")))
        part = lengths[start:stop]
        shift = low[start:stop] - (ends[start:stop] - part - done)  # from the number of a candidate to its place
        places = np.arange(ends[stop - 1] - done) + np.repeat(shift, part)
        yield np.repeat(queries[some[start:stop]], part), others[places]
        start = stop


def _expand(
    order: Rows, starts: Rows, counts: Rows, pairs: Rows, distances: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.int64], int]:
    """Pairs of distinct hashes into pairs of rows.

    Returns:
        Pairs of rows and their distances, and how many pairs are not listed. Where all of them would be more than
        `MAX_PAIRS`, each two distinct hashes give only so many that every one of their rows occurs.
    """
    left, right = counts[pairs[:, 0]], counts[pairs[:, 1]]
    total = int((left * right).sum())
    numbers = left * right if total <= MAX_PAIRS else np.maximum(left, right)
    owner = np.repeat(np.arange(len(pairs)), numbers)
    turn = np.arange(len(owner)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    first = turn % left[owner]
    second = (turn // left[owner] if total <= MAX_PAIRS else turn) % right[owner]
    rows = np.sort(order[starts[pairs[owner]] + np.stack([first, second], axis=1)], axis=1)
    ascending = np.lexsort((rows[:, 1], rows[:, 0]))
    return rows[ascending], distances[owner][ascending], total - len(rows)


def _note(skipped: int, unlisted: int) -> str:
    parts = []
    if skipped:
        parts.append(f"{skipped:,} comparisons not made, so close pairs may be missing")
    if unlisted:
        parts.append(f"{unlisted:,} close pairs not listed, whose pictures occur in other pairs")
    return f"too many pictures look alike: {', '.join(parts)}" if parts else ""
