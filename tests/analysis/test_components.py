from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from analysis.load import runs_frame
from analysis.methods import in_order
from analysis.tables.components import components_data, components_table, render_components
from robuq.record.run_record import RunRecord

Maker = Callable[..., RunRecord]
GOLDEN = Path(__file__).parent.parent / "golden" / "components.md"


@pytest.fixture(scope="module")
def data(runs: pd.DataFrame) -> pd.DataFrame:
    return components_data(runs)


def test_rows_come_in_the_order_of_the_paper(data: pd.DataFrame) -> None:
    components = ["minmax", "baseline", "robust_no_rotation", "robuq_uniform"]
    assert data["variant"].to_list() == ["full_precision", "ternary_rotation", *components[:2], *components]
    assert data["bits"].fillna(0).to_list() == [0] * 2 + [4] * 2 + [2] * 4


def test_a_row_is_the_mean_of_its_runs(data: pd.DataFrame, runs: pd.DataFrame) -> None:
    row = data[(data["variant"] == "minmax") & (data["bits"] == 2)].iloc[0]
    own, base = (
        runs[(runs["variant"] == name) & (runs["act_bits"] == 2)].sort_values("seed") for name in ("minmax", "baseline")
    )
    test = stats.ttest_rel(own["held_out_loss"], base["held_out_loss"])
    assert row["held_out_loss"] == pytest.approx(own["held_out_loss"].mean(), rel=1e-12)
    assert set(row["keys"].split()) == set(own["key"])
    assert row["difference_p"] == pytest.approx(test.pvalue, rel=1e-9)
    assert row["difference_low"] == pytest.approx(test.confidence_interval().low, rel=1e-9)


def test_differences_are_within_one_width_and_not_for_the_baseline_itself(data: pd.DataFrame) -> None:
    without = data[data["difference_n"] == 0]
    assert without["variant"].to_list() == ["full_precision", "ternary_rotation", "baseline", "baseline"]
    assert without["difference"].isna().all()


def test_only_quantized_activations_are_ranked(data: pd.DataFrame) -> None:
    assert (data.loc[data["bits"].isna(), "held_out_loss_mark"] == "").all()
    best = data[(data["bits"] == 2) & (data["held_out_loss_mark"] == "best")]
    assert best["variant"].to_list() == ["robuq_uniform"]


def test_a_failed_run_lowers_n(make_record: Maker) -> None:
    failed = make_record("minmax", 2, 2, status="failed", failure="diverged", metrics={})
    records = [make_record(name, 2, seed) for name in ("minmax", "baseline") for seed in (0, 1)]
    data = components_data(runs_frame([*records, failed, make_record("baseline", 2, 2)]))
    assert data.set_index("variant")["n"].to_dict() == {"minmax": 2, "baseline": 3}
    assert data.set_index("variant").loc["minmax", "difference_n"] == 2


def test_one_seed_has_no_interval_and_no_marks(make_record: Maker) -> None:
    data = components_data(runs_frame([make_record(name, 2, 0) for name in ("minmax", "baseline")]))
    table = components_table(data)
    assert "±" not in "".join(table.cells.to_numpy().ravel())
    assert (table.marks == "").all(axis=None)


def tuned(make_record: Maker, validation: dict[float, list[float | None]]) -> list[RunRecord]:
    """minmax at each learning rate with these validation losses, one a seed; the best by them is the worst held out."""
    records = []
    for lr, losses in validation.items():
        for seed, loss in enumerate(losses):
            record = make_record("minmax", 2, seed, lr=lr)
            values = {name: value for name, value in record.metrics.items() if name != "validation_loss"}
            values |= {"held_out_loss": 1.0} if loss is None else {"held_out_loss": 1 - loss, "validation_loss": loss}
            records.append(record.updated(metrics=values))
    return records


def test_learning_rates_are_chosen_by_validation_never_by_held_out_images(make_record: Maker) -> None:
    """By the mean: the chosen rate is best for neither seed alone."""
    records = tuned(make_record, {1e-3: [0.20, 0.20], 2e-3: [0.10, 0.40], 3e-3: [0.40, 0.10], 4e-3: [0.18, 0.19]})
    data = components_data(runs_frame(records))
    assert data["lr"].to_list() == [4e-3]
    assert data["n"].to_list() == [2]
    assert data["held_out_loss"].iloc[0] == pytest.approx(1 - 0.185)


def test_a_learning_rate_that_lost_seeds_is_not_chosen(make_record: Maker) -> None:
    data = components_data(runs_frame(tuned(make_record, {1e-3: [0.2, 0.3, 0.4], 1e-1: [0.1]})))
    assert data["lr"].to_list() == [1e-3]
    assert data["n"].to_list() == [3]


def test_without_a_validation_loss_nothing_is_chosen(make_record: Maker) -> None:
    records = tuned(make_record, {1e-3: [0.2, None], 2e-3: [0.1, 0.1]})
    key = next(record.key for record in records if "validation_loss" not in record.metrics)
    with pytest.raises(ValueError, match=rf"minmax has several.* run {key} has no validation_loss.*") as caught:
        components_data(runs_frame(records))
    assert "\n" not in str(caught.value)
    one_rate = components_data(runs_frame(tuned(make_record, {1e-3: [None, None]})))
    assert one_rate["n"].to_list() == [2]


def test_two_protocols_never_share_a_table(make_record: Maker) -> None:
    mixed = runs_frame([make_record(seed=0), make_record(seed=1, protocol="bbbbbbbbbbbb")])
    with pytest.raises(ValueError, match=r"^protocols aaaaaaaaaaaa and bbbbbbbbbbbb cannot share a table.*$"):
        components_data(mixed)


def test_two_runs_of_one_cell_and_seed_are_refused(make_record: Maker) -> None:
    record = make_record(seed=0)
    with pytest.raises(ValueError, match=rf"runs {record.key} and {'f' * 16} are both robuq_uniform with seed 0"):
        components_data(runs_frame([record, record.updated(key="f" * 16)]))


def test_a_mixed_allocation_is_compared_at_its_nearest_width(make_record: Maker) -> None:
    records = [make_record("baseline", 2, seed) for seed in (0, 1)]
    records += [make_record("robuq_uniform", 2, seed, act_bits=2.15) for seed in (0, 1)]
    assert components_data(runs_frame(records))["bits"].to_list() == [2.0, 2.0]


def test_ampn_stands_beside_one_width_at_its_budget(make_record: Maker) -> None:
    """`act_bits` of a run with AMPN is the mean that its budget keeps to."""
    records = [make_record("robuq_uniform", bits, seed) for bits in (2, 3) for seed in (0, 1)]
    records += [
        make_record("robuq", bits, seed, act_bits=float(bits), key=f"{bits}{seed:015x}")
        for bits in (2, 3)
        for seed in (0, 1)
    ]
    data = components_data(runs_frame(records), baseline="robuq_uniform")
    rows = [(3.0, "robuq_uniform"), (3.0, "robuq"), (2.0, "robuq_uniform"), (2.0, "robuq")]
    assert list(zip(data["bits"], data["variant"], strict=True)) == rows
    assert components_table(data).cells["Method"].to_list()[1] == "RobuQ with AMPN"


def test_other_variants_follow_by_name() -> None:
    assert in_order(["mine", "another", "robuq_uniform"]) == ["robuq_uniform", "another", "mine"]


def test_rendered_table_golden(make_record: Maker) -> None:
    """Written once from the data below; a change of it is a change of every report."""
    records = [make_record("full_precision", 2, seed) for seed in (0, 1, 2)]
    losses = {
        "minmax": (0.125, 0.126, 0.1265),
        "baseline": (0.116, 0.1166, 0.117),
        "robuq_uniform": (0.107, 0.108, 0.1077),
    }
    for name, values in losses.items():
        made = [make_record(name, 2, seed) for seed in (0, 1, 2)]
        fixed = {"precision": 0.5, "recall": math.sqrt(0.5), "classifier_score": 8.0}
        records += [
            r.updated(metrics={"held_out_loss": x, "fd_classifier": 5e4 * (x - 0.1) ** 2, **fixed})
            for r, x in zip(made, values, strict=True)
        ]
    records = [r.updated(metrics={"held_out_loss": 0.09}) if r.variant == "full_precision" else r for r in records]
    assert render_components(components_data(runs_frame(records)), "markdown") == GOLDEN.read_text(encoding="utf-8")
