"""The folder of the paper's artefacts: files, what was published beside them, a page, and a manifest of run keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.load import runs_frame
from analysis.paper import ARTEFACTS, Artefact
from analysis.product import Feed, Product
from analysis.published import load_published, published, published_table
from analysis.render import captioned, render
from analysis.report_files import (
    dataset_name,
    figure_section,
    table_links,
    write_figure,
    write_json,
    write_table,
    write_text,
)
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord

MANIFEST, PAGE = "manifest.json", "paper.md"
INTRODUCTION = """\
Ours and the published numbers stand apart: other networks, other data, other metrics. Nothing of ours is ranked with
what was published. [manifest.json](manifest.json) names the runs behind every cell; `robuq provenance FILE` prints
them."""


@dataclass(frozen=True)
class Recorded:
    """What there is to build from: of each plan the records of its own runs and how many runs it has, and searches."""

    plans: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict)
    planned: Mapping[str, int] = field(default_factory=dict)
    searches: Mapping[str, SearchRecord] = field(default_factory=dict)
    tracking_uri: str = ""


@dataclass(frozen=True)
class Gap:
    """What is missing of one artefact, why, and the command that makes it; `partly`: it was built of what is there."""

    artefact: str
    reason: str
    command: str = ""
    partly: bool = False


@dataclass(frozen=True)
class Built:
    """`files`: the page first. `products`: by the name of their files."""

    files: list[Path]
    gaps: list[Gap]
    products: Mapping[str, tuple[Artefact, Feed, Product]]


def build_all(folder: Path, recorded: Recorded, ids: Sequence[str] = ()) -> Built:
    """Build the artefacts `ids` (all of them if none are named) into `folder`; what cannot be built is a gap.

    Raises:
        ValueError: an unknown id.
        FileNotFoundError: a recorded artefact is gone.
    """
    artefacts = [artefact_of(name) for name in ids] or list(ARTEFACTS.values())
    folder.mkdir(parents=True, exist_ok=True)
    products, gaps = built_products(artefacts, recorded)
    reference = load_published()
    files: list[Path] = []
    for name, (_, _, product) in products.items():
        files += _write(product, folder, name)
    shown = [artefact for artefact in artefacts if any(made is artefact for made, _, _ in products.values())]
    for artefact in shown:
        files += _write_published(artefact, reference, folder)
    files.append(write_json(manifest_of(products, gaps, recorded), folder / MANIFEST))
    page = write_text(folder / PAGE, _page(artefacts, products, gaps, reference))
    return Built([page, *files], gaps, products)


def artefact_of(name: str) -> Artefact:
    if name not in ARTEFACTS:
        raise ValueError(f"no artefact {name!r}: there are {', '.join(ARTEFACTS)}")
    return ARTEFACTS[name]


def built_products(
    artefacts: Sequence[Artefact], recorded: Recorded
) -> tuple[dict[str, tuple[Artefact, Feed, Product]], list[Gap]]:
    """Products by name, and the gaps, both in the artefacts' order."""
    products: dict[str, tuple[Artefact, Feed, Product]] = {}
    gaps: list[Gap] = []
    feeds = _Feeds(recorded)
    for artefact in artefacts:
        gaps += feeds.gaps(artefact)
        for feed in feeds.of(artefact):
            try:
                product = artefact.build(feed)
            except ValueError as error:  # several protocols, or runs that cannot share a table: refused, not patched up
                gaps.append(Gap(artefact.id, f"{feed.name}: refused: {error}"))
                continue
            if product is None:
                gaps.append(
                    Gap(artefact.id, f"{feed.name}: no recorded run has what it shows", command_of(artefact, feed.name))
                )
            else:
                products[_name(artefact, feed)] = (artefact, feed, _titled(product, artefact, feed))
    return products, gaps


def command_of(artefact: Artefact, source: str) -> str:
    """What makes the runs or the search that the artefact lacks."""
    return f"robuq {'search' if source in artefact.searches else 'sweep'} {source}"


class _Feeds:
    """Each plan becomes one frame, however many artefacts it feeds."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._frames = {plan: runs_frame(records) for plan, records in recorded.plans.items() if records}

    def of(self, artefact: Artefact) -> Iterator[Feed]:
        recorded = any(name in self._frames for name in artefact.plans)
        if not (artefact.plans or artefact.searches) or (artefact.alone and not recorded):
            yield Feed(artefact.id)
        for plan in artefact.plans:
            if plan in self._frames:
                records = {record.key: record for record in self._recorded.plans[plan]}
                yield Feed(plan, self._frames[plan], records, tracking_uri=self._recorded.tracking_uri)
        for name in artefact.searches:
            if name in self._recorded.searches:
                yield Feed(name, search=self._recorded.searches[name], tracking_uri=self._recorded.tracking_uri)

    def gaps(self, artefact: Artefact) -> list[Gap]:
        gaps = []
        for plan in artefact.plans:
            count, planned = len(self._recorded.plans.get(plan, ())), self._recorded.planned.get(plan, 0)
            if plan not in self._frames or count < planned:
                reason = f"{plan}: {count} of {planned} runs are recorded"
                gaps.append(Gap(artefact.id, reason, command_of(artefact, plan), partly=count > 0))
        gaps += [
            Gap(artefact.id, f"{name}: the search is not recorded", command_of(artefact, name))
            for name in artefact.searches
            if name not in self._recorded.searches
        ]
        return gaps


def _name(artefact: Artefact, feed: Feed) -> str:
    dataset = _dataset(feed)
    return f"{artefact.id}_{dataset}" if dataset else artefact.id


def _dataset(feed: Feed) -> str:
    """Empty for what is computed."""
    if feed.search is not None:
        return feed.search.dataset
    return str(feed.runs["dataset"].iloc[0]) if len(feed.runs) else ""


def _titled(product: Product, artefact: Artefact, feed: Feed) -> Product:
    """Captions stand alone, away from the page's headings: they begin with what it is and on which data."""
    dataset = _dataset(feed)
    title = f"{artefact.title}, {dataset_name(dataset)}" if dataset else artefact.title
    table = None if product.table is None else replace(product.table, title=title)
    return replace(product, caption=captioned(title, product.caption), table=table)


# --- files --------------------------------------------------------------------------------------------------------


def _write(product: Product, folder: Path, name: str) -> list[Path]:
    if product.table is not None:
        return write_table(product.table, product.data, folder, name)
    assert product.figure is not None
    return write_figure((product.figure, product.data, product.caption), folder, name)


def _write_published(artefact: Artefact, reference: pd.DataFrame, folder: Path) -> list[Path]:
    files: list[Path] = []
    for name in artefact.published:
        data = published(name, reference)
        title = f"{artefact.title}: published numbers"
        files += write_table(published_table(data), data, folder, f"{name}_published", title=title)
    return files


def manifest_of(
    products: Mapping[str, tuple[Artefact, Feed, Product]], gaps: Sequence[Gap], recorded: Recorded
) -> dict[str, Any]:
    """Artefacts by their files' stem, with plan and cells; every run named there and its git state; what is missing."""
    artefacts = {
        name: {"id": artefact.id, "kind": artefact.kind, "from": feed.name, "cells": product.cells}
        for name, (artefact, feed, product) in products.items()
    }
    named: dict[str, set[str]] = {}  # by plan: a run of several plans has a name in each
    for _, feed, product in products.values():
        named.setdefault(feed.name, set()).update(key for cell in product.cells for key in cell["keys"])
    runs = {
        plan: {record.key: _run(record) for record in sorted(records, key=_key) if record.key in named.get(plan, ())}
        for plan, records in sorted(recorded.plans.items())
    }
    missing = [{"artefact": gap.artefact, "reason": gap.reason, "command": gap.command} for gap in gaps]
    return {"artefacts": artefacts, "runs": runs, "missing": missing}


def _key(record: RunRecord) -> str:
    return record.key


def _run(record: RunRecord) -> dict[str, Any]:
    fields = {"variant", "label", "seed", "pretrain_seed", "protocol", "dataset", "stages", "git", "versions"}
    return record.model_dump(mode="json", include=fields)


# --- the page -----------------------------------------------------------------------------------------------------


def _page(
    artefacts: Sequence[Artefact],
    products: Mapping[str, tuple[Artefact, Feed, Product]],
    gaps: Sequence[Gap],
    reference: pd.DataFrame,
) -> str:
    parts = ["# The paper's tables and figures, from recorded runs", INTRODUCTION]
    if gaps:
        parts += ["## What is missing", gap_list(gaps)]
    for artefact in artefacts:
        own = {name: (feed, product) for name, (made, feed, product) in products.items() if made is artefact}
        if own:
            parts.append(f"## {artefact.title}")
        for name, (feed, product) in own.items():
            parts += _section(name, feed, product)
        if own:
            parts += _published_sections(artefact, reference)
    return "\n\n".join(parts) + "\n"


def gap_list(gaps: Sequence[Gap]) -> str:
    return "\n".join(f"- {line}" for line in gap_lines(gaps, "`"))


def gap_lines(gaps: Sequence[Gap], quote: str = "") -> list[str]:
    """One line a plan or search that is missing, or there in part: why, which artefacts lack it, what makes it."""
    artefacts: dict[tuple[str, str, bool], list[str]] = {}
    for gap in gaps:
        artefacts.setdefault((gap.reason, gap.command, gap.partly), []).append(gap.artefact)
    return [
        f"{'in part' if partly else 'missing'}: {', '.join(names)}: {reason}"
        + (f": {quote}{command}{quote}" if command else "")
        for (reason, command, partly), names in artefacts.items()
    ]


def _section(name: str, feed: Feed, product: Product) -> list[str]:
    origin = f"### {name}\n\nFrom `{feed.name}`." if len(feed.runs) or feed.search else f"### {name}\n\nComputed."
    if product.table is None:
        return [origin, *figure_section(name, product.caption, name)[1:]]
    return [origin, render(product.table, "markdown").strip(), product.caption, table_links(name)]


def _published_sections(artefact: Artefact, reference: pd.DataFrame) -> list[str]:
    parts: list[str] = []
    for name in artefact.published:
        table = published_table(published(name, reference))
        title = f"### {name}: published"
        parts += [title, render(table, "markdown").strip(), table.caption, table_links(f"{name}_published")]
    return parts
