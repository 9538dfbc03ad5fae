"""A random sample of rows that are seen once, and what a sample may miss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from trajectory.data.windows import uniform_hash

KEY = (0,)  # of the choice, which depends on the number of a row alone


class RowSample:
    """At most `most` rows, and no less than about half as many.

    A row is in the sample if a hash of its number is below a threshold, which is halved whenever the sample grows
    beyond `most`. So every row has the same chance, and it does not matter in which parts they come.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.threshold = 1.0
        self.seen = self.kept = 0
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []  # (n,) hashes and (D, n) numbers

    def add(self, columns: Sequence[np.ndarray], rows: np.ndarray) -> None:
        """The next rows, of D columns.

        Args:
            rows: (n,) those that may be drawn.
        """
        hashes = uniform_hash(self.seen + rows, KEY)
        self.seen += len(columns[0])
        chosen = hashes < self.threshold
        rows = rows[chosen]
        self.parts.append((hashes[chosen], np.stack([column[rows] for column in columns])))
        self.kept += len(rows)
        while self.kept > self.most:
            self.threshold /= 2
            self.parts = [
                (part[0][keep], part[1][:, keep]) for part in self.parts for keep in [part[0] < self.threshold]
            ]
            self.kept = sum(len(hashes) for hashes, _ in self.parts)

    def columns(self) -> Iterator[np.ndarray]:
        """(n,) of each of the D columns."""
        for column in zip(*(numbers for _, numbers in self.parts), strict=True):
            yield np.concatenate(column)


def rank_error(rows: int, probability: float = 1e-9) -> float:
    """The most by which the share of a column's numbers up to any one differs between a random sample and all rows.

    It is larger with at most the given probability (Dvoretzky, Kiefer and Wolfowitz 1956, with Massart's constant).
    """
    return math.sqrt(math.log(2 / probability) / (2 * rows))


class KnownValues:
    """What bins must know of a column whatever a sample misses: of few distinct values all, else least and greatest.

    Args:
        most: distinct values that are few.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.values = np.empty(0, dtype=np.float32)
        self.few = True

    def add(self, numbers: np.ndarray) -> None:
        """The next numbers of the column; not a number stays."""
        if self.few:
            self.values = np.unique(np.append(self.values, numbers))
            self.few = len(self.values) <= self.most
        elif len(numbers):
            self.values = np.append(self.values, [numbers.min(), numbers.max()])
        if not self.few:
            self.values = np.array([self.values.min(), self.values.max()])
