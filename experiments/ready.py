"""The stages of a sweep that could start now, kept in order while they come and go: a sweep of ten thousand runs asks
for the best of them after every stage."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable
from itertools import chain, islice

Place = tuple[float, int, str]  # minus the seconds of the longest path that begins with the stage; its number; its id


class ReadyStages:
    """Longest remaining path first, so that the workers end together; but while there is plenty to do, a stage that
    ends a run goes first, so that results come in along the way."""

    def __init__(self) -> None:
        self._ending: list[Place] = []  # both sorted
        self._others: list[Place] = []
        self._known: dict[str, tuple[Place, list[Place]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def put(self, stage: str, seconds: float, number: int, ends_run: bool) -> None:
        """`seconds`: of the longest path that begins with it; `number` decides between equal ones."""
        place, queue = (-seconds, number, stage), self._ending if ends_run else self._others
        if self._known.get(stage) != (place, queue):
            self.discard(stage)
            bisect.insort(queue, place)
            self._known[stage] = (place, queue)

    def discard(self, stage: str) -> None:
        if stage in self._known:
            place, queue = self._known.pop(stage)
            del queue[bisect.bisect_left(queue, place)]

    def first(self, count: int, under_way: int) -> list[str]:
        """The best `count`, while `under_way` stages run."""
        plenty = len(self._others) > 2 * under_way + 2
        order: Iterable[Place] = chain(self._ending, self._others)
        best = islice(order if plenty else heapq.merge(self._ending, self._others), count)
        return [stage for _, _, stage in best]
