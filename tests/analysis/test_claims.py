"""Claims as paired differences: against scipy on the seeds' own sums, and against the plans that must answer them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paper_records import plan_records
from scipy import stats

from analysis.load import runs_frame
from analysis.paper import ARTEFACTS
from analysis.render import render
from analysis.tables.claims import (
    FULL,
    Contrast,
    change,
    claims_cells,
    claims_data,
    claims_table,
    components_claims,
    main_claims,
    minus,
    quantizers_claims,
    warm_up_claims,
)
from robuq.record.run_record import RunRecord

Maker = Callable[..., RunRecord]
CLAIMS = {
    "paper_main": main_claims, "paper_components": components_claims, "paper_quantizers": quantizers_claims,
    "paper_warm_up": warm_up_claims,
}  # fmt: skip
TWO, FOUR = minus("Claim", "robust", "robuq_uniform", "baseline", (2, 4))
MORE = change(TWO, FOUR, "more at 2 bits")


@pytest.fixture(scope="module")
def runs(make_record: Maker) -> pd.DataFrame:
    cells = [("robuq_uniform", 2), ("baseline", 2), ("robuq_uniform", 4), ("baseline", 4), ("ternary_only", 2)]
    return runs_frame([make_record(name, bits, seed) for name, bits in cells for seed in range(5)])


def losses(runs: pd.DataFrame, name: str, bits: int, metric: str = "held_out_loss") -> np.ndarray:
    part = runs[(runs["variant"] == name) & (runs["act_bits"] == bits)].sort_values("seed")
    return part[metric].to_numpy()


@pytest.mark.parametrize("metric", ["held_out_loss", "fd_classifier"])
def test_a_difference_and_an_interaction_are_those_of_scipy(runs: pd.DataFrame, metric: str) -> None:
    data = claims_data(runs, [TWO, MORE])
    at = {bits: losses(runs, "robuq_uniform", bits, metric) - losses(runs, "baseline", bits, metric) for bits in (2, 4)}
    for place, values in enumerate((at[2], at[2] - at[4])):
        test = stats.ttest_1samp(values, 0)
        interval = test.confidence_interval(0.95)
        row = data.iloc[place]
        assert row[metric] == pytest.approx(values.mean(), rel=1e-9)
        assert (row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert row[f"{metric}_p"] == pytest.approx(test.pvalue, rel=1e-9)
    smaller, larger = sorted(data[f"{metric}_p"])
    assert sorted(data[f"{metric}_p_holm"]) == pytest.approx([min(1, 2 * smaller), max(min(1, 2 * smaller), larger)])


def test_only_seeds_that_all_rows_have_are_counted(runs: pd.DataFrame) -> None:
    gone = (runs["variant"] == "baseline") & (runs["act_bits"] == 4) & (runs["seed"] == 3)
    data = claims_data(runs[~gone], [TWO, FOUR, MORE])
    assert data["held_out_loss_n"].to_list() == [5, 4, 4]


def test_a_contrast_that_lacks_a_row_is_left_out_and_none_at_all_is_empty(runs: pd.DataFrame) -> None:
    lacking = minus("Claim", "AMPN", "robuq", "robuq_uniform", (2,))
    assert claims_data(runs, [TWO, *lacking])["contrast"].to_list() == ["robust, 2 bits"]
    assert claims_data(runs, lacking).empty


def test_the_verdict_is_by_the_corrected_p_of_the_loss(make_record: Maker) -> None:
    def shifted(shift: float, noise: float) -> Callable[[RunRecord], RunRecord]:
        def moved(record: RunRecord) -> RunRecord:
            loss = 0.1 + shift + noise * [0.0, 1.0, -1.0, 0.5, -0.5][record.seed]
            return record.updated(metrics={**record.metrics, "held_out_loss": loss})

        return moved

    changes = {
        "baseline": (0.0, 0.0),
        "lsq": (-0.01, 1e-4),
        "quest": (0.01, 1e-4),
        "qdit": (-0.01, 0.0088),
        "robuq": (0.0, 0.01),
    }
    records = [shifted(*by)(make_record(name, 2, seed)) for name, by in changes.items() for seed in range(5)]
    contrasts = [one for name in list(changes)[1:] for one in minus("Claim", name, name, "baseline", (2,))]
    data = claims_data(runs_frame(records), contrasts)
    assert data["verdict"].to_list() == ["lower", "higher", "(lower)", "–"]
    assert data["held_out_loss_p"][2] < 0.05 < data["held_out_loss_p_holm"][2]


def test_rows_without_quantized_activations_are_found(runs: pd.DataFrame) -> None:
    data = claims_data(runs, [Contrast("Claim", "same", {("ternary_only", FULL): 1, ("robuq_uniform", 2): -1})])
    expected = losses(runs, "ternary_only", 32) if len(losses(runs, "ternary_only", 32)) else None
    own = runs[runs["variant"] == "ternary_only"].sort_values("seed")["held_out_loss"].to_numpy()
    assert expected is None or np.array_equal(expected, own)
    assert data["held_out_loss"][0] == pytest.approx((own - losses(runs, "robuq_uniform", 2)).mean(), rel=1e-9)


def test_every_run_behind_a_row_is_named_once(runs: pd.DataFrame) -> None:
    (cell,) = claims_cells(claims_data(runs, [MORE]))
    own = runs[runs["variant"].isin(["robuq_uniform", "baseline"])]["key"]
    assert cell["keys"] == sorted(own)
    assert cell["row"] == "Claim: more at 2 bits"


def test_a_claim_is_named_in_its_first_row_only(runs: pd.DataFrame) -> None:
    other = [Contrast("Another", "robust", FOUR.terms)]
    table = claims_table(claims_data(runs, [TWO, MORE, *other]))
    assert table.cells["Claim"].to_list() == ["Claim", "", "Another"]
    assert table.rules == (2,)
    assert render(table, "latex").isascii()


@pytest.mark.parametrize("plan", CLAIMS)
@pytest.mark.parametrize("suffix", ["", "_fashion"])
def test_each_plan_has_the_rows_that_its_claims_compare(plan: str, suffix: str, tmp_path: Path) -> None:
    """On digits all of them; Fashion-MNIST's plans have fewer widths and kinds, but something of every claim."""
    runs, claims = runs_frame(plan_records(f"{plan}{suffix}", tmp_path)), CLAIMS[plan]()
    data = claims_data(runs, claims)
    if suffix:
        assert list(data["claim"].unique()) == list(dict.fromkeys(claim.claim for claim in claims))
        assert set(data["contrast"]) <= {claim.name for claim in claims}
    else:
        assert data["contrast"].to_list() == [claim.name for claim in claims]
    assert not data["held_out_loss"].map(math.isnan).any()
    artefact = ARTEFACTS[f"claims_{plan.removeprefix('paper_')}"]
    assert f"{plan}{suffix}" in artefact.plans
