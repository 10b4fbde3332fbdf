"""The integer programme of the search: a format for each operator, least sensitivity within a budget, ties kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, lil_matrix

from stagecraft.contract.errors import UserError

_TOLERANCE = 1e-9  # relative, of the budget: HiGHS satisfies a row to 1e-6 of its units, here a ten-thousandth of the budget


@dataclass(frozen=True)
class Programme:
    """Choose one format for each operator.

    Attributes:
        names: of the n operators.
        formats: the f formats.
        sensitivities: float64 [n, f], none negative, what a format does to the loss (nats per token).
        costs: float64 [n, f], what it costs, in whatever the budget is in.
        ties: of each operator; operators with equal ties get equal formats.
        constant: cost of what is not searched.
    """

    names: Sequence[str]
    formats: Sequence[str]
    sensitivities: np.ndarray
    costs: np.ndarray
    ties: Sequence[str]
    constant: float = 0.0

    def groups(self) -> list[list[int]]:
        """Indices of the operators that share a tie, in the order of their first."""
        members: dict[str, list[int]] = {}
        for index, key in enumerate(self.ties):
            members.setdefault(key, []).append(index)
        return list(members.values())

    def cheapest(self) -> float:
        """The least cost that any choice can have, `constant` included."""
        return self.constant + sum(self.costs[group].sum(0).min() for group in self.groups())

    def totals(self, choice: Mapping[str, str]) -> tuple[float, float]:
        """(sensitivity, cost with `constant`) of a choice: operator -> format."""
        rows, columns = np.arange(len(self.names)), [self.formats.index(choice[name]) for name in self.names]
        return float(self.sensitivities[rows, columns].sum()), self.constant + float(self.costs[rows, columns].sum())

    def solve(self, budget: float) -> dict[str, str]:
        """operator -> format with the least total sensitivity among the choices that cost at most `budget`.

        HiGHS stops within 1e-6 of the optimum in the units of the objective: the first solution gives the units for a second,
        which is then exact to 1e-9 of itself.

        Raises:
            UserError: no choice is that cheap; names the least possible.
        """
        if self.cheapest() > budget * (1 + _TOLERANCE):
            raise UserError(f"a budget of {budget:g} where no choice is below {self.cheapest():.4f}",
                            where="quantize.search.effective_bits", mend="raise it, or allow smaller formats")
        choice = self._solve(budget, max(float(self.sensitivities.max()), np.finfo(float).tiny))
        total = self.totals(choice)[0]
        return self._solve(budget, total) if total > 0 else choice

    def _solve(self, budget: float, unit: float) -> dict[str, str]:
        n, f = self.costs.shape
        # A sensitivity above all of the first solution's is out of the question: two units say so as well as a million.
        objective = 1e3 * np.minimum(self.sensitivities.ravel() / unit, 2.0)
        room = max(budget - self.constant, np.finfo(float).tiny)
        spent = csr_matrix(self.costs.reshape(1, -1) / room * 1e4)
        constraints = [LinearConstraint(_one_each(n, f), 1, 1), LinearConstraint(spent, -np.inf, 1e4)]
        equal = self._equal(n, f)
        if equal.shape[0]:
            constraints.append(LinearConstraint(equal, 0, 0))
        found = milp(objective, integrality=np.ones(n * f), bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0})
        if found.x is None:
            raise RuntimeError(f"HiGHS found no solution: {found.message}")
        choice = {name: self.formats[index] for name, index in zip(self.names, found.x.reshape(n, f).argmax(1))}
        if self.totals(choice)[1] > budget * (1 + _TOLERANCE):
            raise RuntimeError(f"HiGHS overspent: {self.totals(choice)[1]} of {budget}")
        return choice

    def _equal(self, n: int, f: int) -> csr_matrix:
        """Rows x[first of a group, format] - x[other, format] = 0."""
        pairs = [(group[0], other) for group in self.groups() for other in group[1:]]
        rows = lil_matrix((len(pairs) * f, n * f))
        for index, (first, other) in enumerate(pairs):
            for fmt in range(f):
                rows[index * f + fmt, first * f + fmt] = 1
                rows[index * f + fmt, other * f + fmt] = -1
        return rows.tocsr()


def _one_each(n: int, f: int) -> csr_matrix:
    return csr_matrix((np.ones(n * f), (np.repeat(np.arange(n), f), np.arange(n * f))), shape=(n, n * f))
