"""A search space whose budget is one of its parameters: what two objectives search. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from robuq.ampn.policy import Parameter, Space, Values, make_space
from robuq.ampn.problem import Bits, Problem
from robuq.config import ConfigError, SearchConfig, SpaceName

LIMIT = "limit"  # the parameter beside those of the space


class BudgetedSpace:
    """The space of the problem of each limit between two. What is decoded keeps to the limit among the values.

    Raises:
        ConfigError: a limit that cannot be reached.
    """

    def __init__(self, name: SpaceName, problem_at: Callable[[float], Problem], limits: tuple[float, float]) -> None:
        self._name, self._problem_at, self._limits = name, problem_at, limits
        problem_at(limits[0])
        self.problem = problem_at(limits[1])

    def parameters(self) -> dict[str, Parameter]:
        return {**self._space(self._limits[1]).parameters(), LIMIT: Parameter(*self._limits)}

    def decode(self, values: Values) -> Bits:
        return self._space(values[LIMIT]).decode({name: value for name, value in values.items() if name != LIMIT})

    def encode(self, bits: Sequence[int]) -> dict[str, float]:
        """The limit is what the bits cost, or the nearest that may be chosen."""
        limit = float(np.clip(self.problem.cost_of(bits), *self._limits))
        return {**self._space(limit).encode(bits), LIMIT: limit}

    def _space(self, limit: float) -> Space:
        return make_space(self._name, self._problem_at(limit))


def search_space(problem: Problem | Callable[[float], Problem], config: SearchConfig) -> tuple[Space, Problem]:
    """The space that a search is over, and its problem at the widest budget.

    Raises:
        ConfigError: a limit cannot be reached, or the problem is not what the number of objectives needs.
    """
    if isinstance(problem, Problem) != (config.budget_range is None):
        raise ConfigError(f"{len(config.objectives)} objective(s): one needs a problem, two a function of its limit")
    if isinstance(problem, Problem):
        return make_space(config.space, problem), problem
    space = BudgetedSpace(config.space, problem, config.budget_range or (0.0, 0.0))
    return space, space.problem
