"""The paper's tables and figures: what each is built from, by what, and what was published of it.

An artefact is built once for each plan or search that feeds it (digits, Fashion-MNIST), as `<id>_<data set>`. Builders
take a `Feed` and give a `Product`, or nothing where the recorded runs lack what it shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from analysis import paper_figures as figures
from analysis.load import finished
from analysis.methods import method_name
from analysis.product import Builder, Feed, Product
from analysis.tables import main, quantizers, warm_up
from analysis.tables.claims import CAPTION as CLAIMS_CAPTION
from analysis.tables.claims import (
    Contrast,
    claims_cells,
    claims_data,
    claims_table,
    components_claims,
    main_claims,
    quantizers_claims,
    warm_up_claims,
)
from analysis.tables.comparison import Comparison, comparison_cells, comparison_data, comparison_table
from analysis.tables.components import CAPTION as COMPONENTS_CAPTION
from analysis.tables.cost import cost_data, cost_table


@dataclass(frozen=True)
class Artefact:
    """`plans` and `searches`: each that was recorded gives one product; neither: it is computed, once.
    `alone`: it is computed, too, where nothing was recorded, and then shows less.

    `published`: ids in `analysis.published`.
    """

    id: str
    title: str
    kind: Literal["table", "figure"]
    build: Builder
    plans: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    alone: bool = False


# --- tables -------------------------------------------------------------------------------------------------------

CONTROLS = ("ternary_only", "ternary_rotation", "ternary_low_rank", "ternary_low_rank_rotation")
COMPONENTS = Comparison(
    {
        "full_precision": "Full precision",
        **{name: method_name(name) for name in CONTROLS},
        **{name: method_name(name) for name in ("bitnet_v2", "bitnet_v2_low_rank")},
        **{name: method_name(name) for name in ("minmax", "minmax_low_rank", "minmax_rotation", "baseline")},
        **{name: method_name(name) for name in ("robust_no_rotation", "robuq_uniform")},
    },
    "baseline",
    COMPONENTS_CAPTION,
)


def _comparison(layout: Comparison, make_data: Callable[[pd.DataFrame], pd.DataFrame] | None = None) -> Builder:
    def build(feed: Feed) -> Product | None:
        if finished(feed.runs).empty:
            return None
        data = make_data(feed.runs) if make_data else comparison_data(feed.runs, layout)
        table = comparison_table(data, layout)
        return Product(data, comparison_cells(data, layout), layout.caption, table=table)

    return build


def _claims(contrasts: list[Contrast]) -> Builder:
    def build(feed: Feed) -> Product | None:
        data = claims_data(feed.runs, contrasts) if len(finished(feed.runs)) else feed.runs
        if data.empty:
            return None
        return Product(data, claims_cells(data), CLAIMS_CAPTION, table=claims_table(data))

    return build


def _cost(feed: Feed) -> Product:
    data = cost_data()
    table = cost_table(data)
    return Product(data, [], table.caption, table=table)


# --- the registry -------------------------------------------------------------------------------------------------


def _both(plan: str) -> tuple[str, str]:
    return f"paper_{plan}", f"paper_{plan}_fashion"


SEARCHES = ("digits_bits", "fashion_bits")
FRONTS = ("paper_pareto",)
LIST = (
    Artefact(
        "main_conditional",
        "Main table: conditional",
        "table",
        _comparison(main.CONDITIONAL),
        _both("main"),
        published=("main_conditional", "settings"),
    ),
    Artefact(
        "main_unconditional",
        "Main table: unconditional",
        "table",
        _comparison(main.UNCONDITIONAL),
        _both("unconditional"),
    ),
    Artefact(
        "components",
        "Table 2a: components of the baseline",
        "table",
        _comparison(COMPONENTS),
        _both("components"),
        published=("components",),
    ),
    Artefact(
        "quantizers",
        "Table 2b: quantizer kinds",
        "table",
        _comparison(quantizers.QUANTIZERS, quantizers.quantizers_data),
        _both("quantizers"),
        published=("quantizers",),
    ),
    Artefact(
        "warm_up",
        "Table 2c: training before the sensitivity",
        "table",
        _comparison(warm_up.WARM_UP),
        _both("warm_up"),
        published=("warm_up",),
    ),
    *(
        Artefact(f"claims_{plan}", f"What holds: {title}", "table", _claims(contrasts), _both(plan))
        for plan, title, contrasts in (
            ("main", "RobuQ, its baseline and AMPN", main_claims()),
            ("components", "rotation, RobustQuantizer, low-rank branch", components_claims()),
            ("quantizers", "grids, scales and clips", quantizers_claims()),
            ("warm_up", "the warm-up before the sensitivity", warm_up_claims()),
        )
    ),
    Artefact("cost", "Cost, split by precision", "table", _cost, published=("cost",)),
    Artefact(
        "figure2", "Figure 2: score against cost", "figure", figures.figure2, _both("main"), published=("figure2",)
    ),
    Artefact("samples", "Images drawn from the same noise", "figure", figures.samples, _both("main")),
    Artefact(
        "distributions", "Activations before and after the rotation", "figure", figures.distributions, _both("main")
    ),
    Artefact(
        "distributions_by_role",
        "Activations before and after the rotation, by layer",
        "figure",
        figures.by_role,
        _both("main"),
    ),
    Artefact(
        "distributions_by_timestep",
        "Activations before and after the rotation, by timestep",
        "figure",
        figures.by_timestep,
        _both("main"),
    ),
    Artefact("kurtosis", "Kurtosis by depth and timestep", "figure", figures.kurtosis, _both("main")),
    Artefact("kl_by_depth", "Distance to the normal by depth", "figure", figures.kl_by_depth, _both("main")),
    Artefact("tokens", "Kurtosis from token to token", "figure", figures.tokens, _both("main")),
    Artefact(
        "central_limit",
        "The rate of the central limit theorem",
        "figure",
        figures.central_limit,
        _both("main"),
        alone=True,
    ),
    Artefact("weights", "Weights with their ternary thresholds", "figure", figures.weights, _both("main")),
    Artefact("curves", "Training curves", "figure", figures.curves, _both("main")),
    Artefact("bits", "Bits of each layer", "figure", figures.bits, searches=SEARCHES, published=("bits",)),
    Artefact("pareto", "Loss against cost of allocations", "figure", figures.pareto, searches=FRONTS),
)
ARTEFACTS: Mapping[str, Artefact] = {artefact.id: artefact for artefact in LIST}


@functools.cache
def paper_plans() -> tuple[str, ...]:
    """Of all artefacts, in their order."""
    return tuple(dict.fromkeys(plan for artefact in LIST for plan in artefact.plans))


@functools.cache
def paper_searches() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for artefact in LIST for name in artefact.searches))
