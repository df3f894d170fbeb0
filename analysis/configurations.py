"""Which runs share their whole configuration but for the seeds. A run's key is the hash of its configuration: whoever
has the configuration of one run knows the keys of the same run with other seeds, and need not read theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from robuq.config.base import canonical_json

FindConfig = Callable[[str, str], Mapping[str, Any] | None]  # (plan, key) -> resolved configuration, None: it is gone
SEEDS = ["seed", "pretrain_seed"]
Row = tuple[str, str, int, int]  # plan, key, seed, pretrain_seed
MARK = "another"  # in place of both seeds, which are numbers
MARKED = f'"pretrain_seed":"{MARK}","seed":"{MARK}"'  # as canonical JSON has two neighbours
SHARE = 10  # keys that are worked out for each new run at the most: a tenth of the time that its reading would take


class Configurations:
    """Of all runs that it was asked for so far: nothing is read or worked out twice, because a key has one
    configuration for ever."""

    def __init__(self, find: FindConfig) -> None:
        self._find = find
        self._texts: dict[str, str] = {}  # name of a configuration -> its text with marks for seeds
        self._names: dict[str, str] = {}  # key of a run -> name of its configuration

    def of(self, runs: pd.DataFrame) -> pd.Series[str]:
        """A name for each run: equal where the configurations are but for seeds and display names. A run whose
        configuration is gone has a name of its own."""
        rows: list[Row] = list(runs[["plan", "key", *SEEDS]].itertuples(index=False, name=None))
        new = [row for row in rows if row[1] not in self._names]
        if new:
            self._learn(new, {self._names[key] for _, key, *_ in rows if key in self._names})
        return pd.Series([self._names.get(key, key) for _, key, *_ in rows], index=runs.index, dtype="str")

    def _learn(self, new: list[Row], near: Iterable[str]) -> None:
        """`near`: names of configurations that the new runs may have."""
        pairs, most = {row[2:] for row in new}, SHARE * len(new)
        expected: dict[str, str] = {}  # key -> name

        def expect(name: str) -> None:
            if len(expected) < most:  # where nearly every run has another configuration, it is not worth it
                expected.update({_key(self._texts[name], *pair): name for pair in pairs})

        for name in near:
            expect(name)
        for plan, key, *_ in new:
            name = expected.get(key, "")
            if not name and (name := self._read(plan, key)):
                expect(name)
            if name:
                self._names[key] = name

    def _read(self, plan: str, key: str) -> str:
        """The name of that run's configuration; empty where it is gone."""
        config = self._find(plan, key)
        if config is None:
            return ""
        text = canonical_json({**config, "variant": "", "seed": MARK, "pretrain_seed": MARK})
        name = hashlib.sha256(text.encode()).hexdigest()
        self._texts[name] = text
        return name


def _key(text: str, seed: int, pretrain_seed: int) -> str:
    """As `RunConfig.key` has it."""
    whole = text.replace(MARKED, f'"pretrain_seed":{pretrain_seed},"seed":{seed}', 1)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
