"""Split rows into parts by class, keeping groups (the pictures of one person, copies of one picture) together.

Legend: N rows, G groups, P parts, C classes; the last column of (., C + 1) tables counts rows of any class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.errors import NkfError

Counts = NDArray[np.int64]


def folds(labels: NDArray[np.integer], groups: NDArray[Any] | None, count: int, seed: int) -> NDArray[np.int64]:
    """Split rows into `count` equal parts; see `stratified_groups`."""
    if count < 2:
        raise NkfError(f"{count} folds: expected two or more")
    return stratified_groups(labels, groups, [1 / count] * count, seed)


def stratified_groups(
    labels: NDArray[np.integer], groups: NDArray[Any] | None, shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Split rows into parts that have the classes in proportion, as well as whole groups allow.

    Without groups each class is spread exactly, its remaining rows to the largest remainders. Groups of several rows
    are placed first, those with the most of what is rare leading, each where least is filled; single rows fill up.

    Every part with a share gets rows, and rows of each class that has as many groups as there are parts, except where
    groups of several classes make that impossible.

    Args:
        labels: (N,) integers; each value is a class.
        groups: (N,) names or numbers, or None where each row stands alone.
        shares: of the parts, from 0 to 1, with sum 1.
        seed: the same arguments give the same parts on every machine.

    Returns:
        (N,) numbers of the parts, from 0.

    Raises:
        NkfError: when the shares are no such shares, or there are fewer groups than parts.
        ValueError: when the arrays do not fit each other.
    """
    if labels.ndim != 1 or (groups is not None and groups.shape != labels.shape):
        raise ValueError(f"labels of shape {labels.shape}, groups of {None if groups is None else groups.shape}")
    wanted = np.asarray(shares, np.float64)
    if not len(wanted) or not (wanted >= 0).all() or abs(wanted.sum() - 1) > 1e-6:
        raise NkfError(f"shares {', '.join(f'{share:g}' for share in shares)}: expected shares from 0 to 1 with sum 1")
    wanted /= wanted.sum()
    group_of_row = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    num_groups = int(group_of_row.max(initial=-1)) + 1
    if num_groups < (wanted > 0).sum():
        what = "images" if groups is None else "groups of images"
        raise NkfError(f"{num_groups} {what} cannot be split into {(wanted > 0).sum()} parts")
    class_of_row = np.unique(labels, return_inverse=True)[1]
    counts = _count(group_of_row, class_of_row, num_groups)
    placing = _Placing(counts, wanted, np.random.default_rng(seed))
    placing.place_groups()
    placing.place_singles()
    placing.fill_gaps()
    return placing.part_of_group[group_of_row]


def _count(group_of_row: Counts, class_of_row: Counts, num_groups: int) -> Counts:
    """(G, C + 1) rows by group and class."""
    num_classes = int(class_of_row.max()) + 1
    cells = np.bincount(group_of_row * num_classes + class_of_row, minlength=num_groups * num_classes)
    by_class = cells.reshape(num_groups, num_classes)
    return np.concatenate([by_class, by_class.sum(axis=1, keepdims=True)], axis=1).astype(np.int64)


class _Placing:
    """Parts being filled.

    Sums over classes are taken column by column: the order of a floating-point sum must not depend on the machine.

    Attributes:
        counts: (G, C + 1) rows of the groups.
        shares: (P,) of the parts, with sum 1.
        quota: (P, C + 1) rows that the parts should get.
        placed: (P, C + 1) rows that they have.
        part_of_group: (G,), -1 where it is not decided yet.
    """

    def __init__(self, counts: Counts, shares: NDArray[np.float64], generator: np.random.Generator) -> None:
        self.counts = counts
        self.shares = shares
        self.generator = generator
        self.used = np.flatnonzero(shares > 0)
        self.rank = generator.permutation(len(shares))  # of parts, for ties
        self.totals = counts.sum(axis=0)
        self.quota = self._quota()
        self.placed = np.zeros_like(self.quota)
        self.part_of_group = np.full(len(counts), -1, np.int64)

    def _quota(self) -> Counts:
        quota = np.zeros((len(self.shares), len(self.totals)), np.int64)
        for c in np.argsort(self.totals[:-1], kind="stable"):
            # Of equal remainders the parts that are behind come first, or the first part would be the largest.
            behind = self.shares * quota[:, -1].sum() - quota[:, -1]
            quota[:, c] = _apportion(self.shares, int(self.totals[c]), behind, self.rank)
            quota[:, -1] += quota[:, c]
        return quota

    def _put(self, group: int, part: int) -> None:
        if self.part_of_group[group] >= 0:
            self.placed[self.part_of_group[group]] -= self.counts[group]
        self.placed[part] += self.counts[group]
        self.part_of_group[group] = part

    def place_groups(self) -> None:
        """Place the groups of several rows, each where its classes have the least after it, for the part's share.

        So each part gets its share of large and of small groups, and a group that is too large for a part stays out.
        """
        weight = np.zeros(len(self.counts))
        for c, total in enumerate(self.totals):
            weight += self.counts[:, c] / total
        several = np.flatnonzero(self.counts[:, -1] > 1)
        several = several[self.generator.permutation(len(several))]
        for group in several[np.argsort(-weight[several], kind="stable")]:
            filled = np.zeros(len(self.used))
            for c in np.flatnonzero(self.counts[group]).tolist():
                rows, share = self.counts[group, c], self.shares[self.used] * self.totals[c]
                filled += rows / self.totals[c] * (self.placed[self.used, c] + rows) / share
            self._put(int(group), int(self.used[np.lexsort((self.rank[self.used], filled))[0]]))

    def place_singles(self) -> None:
        """Place the groups of one row: of each class as many as each part lacks."""
        single = (self.counts[:, -1] == 1) & (self.part_of_group < 0)
        for c in range(len(self.totals) - 1):
            rows = np.flatnonzero(single & (self.counts[:, c] == 1))
            missing = np.maximum(self.quota[:, c] - self.placed[:, c], 0)
            if missing.sum() > len(rows):  # parts above their quota took these from the others
                behind = (self.quota[:, -1] - self.placed[:, -1]).astype(np.float64)
                missing = _apportion(missing / missing.sum(), len(rows), behind, self.rank)
            shuffled = rows[self.generator.permutation(len(rows))]
            self.part_of_group[shuffled] = np.repeat(np.arange(len(missing)), missing)
            self.placed[:, c] += missing
            self.placed[:, -1] += missing

    def fill_gaps(self) -> None:
        """Move the least disturbing groups to the parts that have none of a class that is there for all of them."""
        present = self.counts > 0
        common = present.sum(axis=0) >= len(self.used)
        for c in np.argsort(present.sum(axis=0), kind="stable"):
            for part in self.used[self.placed[self.used, c] == 0] if common[c] else ():
                holds = np.stack([present[self.part_of_group == p].sum(axis=0) for p in range(len(self.placed))])
                spare = ~(present & common & (holds[self.part_of_group] < 2)).any(axis=1)
                movable = np.flatnonzero(spare & present[:, c])
                if len(movable):
                    self._put(int(movable[np.argmin(self._cost(movable, part))]), int(part))

    def _cost(self, groups: Counts, part: int) -> NDArray[np.float64]:
        """(len(groups),) growth of the squared deviations from the quotas when each group moves to the part."""
        over = self.placed - self.quota
        cost = np.zeros(len(groups))
        for c, total in enumerate(self.totals):
            rows = self.counts[groups, c]
            cost += rows * (over[part, c] - over[self.part_of_group[groups], c] + rows) / total**2
        return cost


def _apportion(shares: NDArray[np.float64], total: int, behind: NDArray[np.float64], rank: Counts) -> Counts:
    """Whole numbers with a given sum, by largest remainder; ties go by `behind`, largest first, then by `rank`."""
    exact = shares * total
    whole = np.floor(exact).astype(np.int64)
    # Shares such as 1/3 leave errors of rounding, which are no remainders.
    remainder = np.round(exact - whole, 9)
    order = np.lexsort((rank, -np.round(behind, 9), -remainder))
    order = order[shares[order] > 0]
    whole[np.resize(order, max(0, total - int(whole.sum())))] += 1
    return whole
