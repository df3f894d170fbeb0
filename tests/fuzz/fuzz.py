"""The long form of the fuzzing: tens of thousands of cases, and a table of what came of them.

python tests/fuzz/fuzz.py --cases 2000 --seed 0 --table fuzz.md
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import surfaces_data
import surfaces_files
import surfaces_settings
from contract import ACCEPTED, REFUSED
from hypothesis import HealthCheck, Phase, given, seed, settings
from surfaces import Surface, Tally

SLOW = 20.0  # seconds of one case, after which it counts as a hang
MEMORY = 1 << 30  # bytes that one case may add to the most memory that was ever used
SURFACES: tuple[Surface, ...] = (*surfaces_settings.ALL, *surfaces_data.ALL, *surfaces_files.ALL)


def tally(surface: Surface, cases: int, seed_of_cases: int) -> Tally:
    """Of that many cases; a failure is kept and does not end it."""
    result = Tally()

    @seed(seed_of_cases)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(surface.cases)
    def run(case: object) -> None:
        begun, before = time.perf_counter(), _most_memory()
        try:
            end = surface.run(case)
            assert time.perf_counter() - begun < SLOW, f"{time.perf_counter() - begun:.0f} seconds"
            assert _most_memory() - before < MEMORY, f"{(_most_memory() - before) >> 20} MiB"
        except Exception as error:  # whatever it is, it is counted
            end = "failed"
            result.failures.append(f"{case!r:.600}\n    {type(error).__name__}: {str(error)[-1500:]}")
        result.ends[end] += 1

    run()
    return result


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(tallies: dict[str, Tally]) -> str:
    lines = ["| surface | cases | refused | accepted | failures |", "|---|---|---|---|---|"]
    whole: Counter[str] = Counter()
    for name, of in tallies.items():
        lines.append(_row(name, of.ends))
        whole += of.ends
    return "\n".join([*lines, _row("together", whole)]) + "\n"


def _row(name: str, ends: Counter[str]) -> str:
    return f"| {name} | {ends.total()} | {ends[REFUSED]} | {ends[ACCEPTED]} | {ends['failed']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each surface")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", default="", help="only those whose names contain this")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    warnings.simplefilter("always")
    tallies: dict[str, Tally] = {}
    for surface in (one for one in SURFACES if options.surface in one.name):
        begun = time.perf_counter()
        tallies[surface.name] = tally(surface, max(1, round(options.cases * surface.share)), options.seed)
        for failure in tallies[surface.name].failures:
            print(f"{surface.name}: {failure}\n")
        took = time.perf_counter() - begun
        print(f"{surface.name}: {dict(tallies[surface.name].ends)} in {took:.0f} s", flush=True)
    text = table(tallies)
    print(text)
    if options.table:
        options.table.write_text(text)
    sys.exit(1 if any(of.failures for of in tallies.values()) else 0)


if __name__ == "__main__":
    main()
