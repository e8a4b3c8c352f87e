"""Ridge regression of many targets on many rows that are seen only once."""

from __future__ import annotations

import torch
from torch import Tensor


class Regression:
    """Least squares with an intercept: which change of a layer's weights makes up most for what its outputs lack.

    While there are fewer rows than columns the rows are kept, and the dual problem is solved; after that their
    products. So never more is held than a square matrix of the columns. Sums are float64; products of rows are taken in
    the rows' own precision.

    Parameters
    ----------
    columns
        Numbers per row. With none, only the intercept is fitted.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None
        self._sum: Tensor | float = 0.0
        self._lacking: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, rows: Tensor | None, lacking: Tensor) -> None:
        """Take rows ``[n, columns]``, None where there are no columns, and what the outputs lack there ``[n, O]``."""
        self.rows += len(lacking)
        self._lacking = self._lacking + lacking.sum(0, dtype=torch.float64)
        self._squares = self._squares + lacking.double().square().sum(0)
        if not self.columns:
            return
        self._sum = self._sum + rows.sum(0, dtype=torch.float64)
        if self._gram is None and self.rows <= self.columns:
            self._kept.append((rows, lacking))
            return
        for one, other in (*self._kept, (rows, lacking)):
            gram, cross = (one.T @ one).double(), (one.T @ other).double()
            if self._gram is None:
                self._gram, self._cross = gram, cross
            else:
                self._gram += gram
                self._cross += cross
        self._kept = []

    def solve(self, strength: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The change that minimises the sum of squares plus `strength` times the mean column's squares times its own.

        Squares of columns are about their mean. The intercept is not held back.

        Returns
        -------
        tuple
            The change ``[O, columns]``, the intercept ``[O]``, and the sums of squares ``[O]`` of what lacks before and
            after; all float64.
        """
        lacking = self._lacking / self.rows
        if not self.columns:
            change = lacking.new_zeros(len(lacking), 0)
            return change, lacking, self._squares, (self._squares - self.rows * lacking.square()).clamp_min(0)
        mean = self._sum / self.rows
        if self._gram is None:
            rows, targets = (torch.cat(parts).double() for parts in zip(*self._kept, strict=True))
            rows, targets = rows - mean, targets - lacking
            kernel = rows @ rows.T
            factor = _cholesky(kernel, strength * float(kernel.trace()) / self.columns)
            change = rows.T @ torch.cholesky_solve(targets, factor)
            after = (targets - rows @ change).square().sum(0)
        else:
            gram = self._gram - self.rows * torch.outer(mean, mean)
            cross = self._cross - self.rows * torch.outer(mean, lacking)
            factor = _cholesky(gram, strength * float(gram.trace()) / self.columns)
            change = torch.cholesky_solve(cross, factor)
            explained = (change * (2 * cross - gram @ change)).sum(0)
            after = (self._squares - self.rows * lacking.square() - explained).clamp_min(0)
        return change.T, lacking - mean @ change, self._squares, after


def _cholesky(matrix: Tensor, penalty: float) -> Tensor:
    """The factor of the matrix with the penalty, or the least that lets it have one, on its diagonal."""
    least = torch.finfo(matrix.dtype).eps * float(matrix.diagonal().sum())
    penalty = max(penalty, least) or 1.0
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + penalty * torch.eye(len(matrix)).to(matrix))
        if not int(failed):
            return factor
        penalty *= 10
