"""Ours beside the published numbers, by records of the paper's own plans on both data sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd
import pytest
import torch
from paper_records import plan_records

from analysis.load import runs_frame
from analysis.paper import ARTEFACTS
from analysis.product import Feed, Product
from analysis.published import load_published
from analysis.render import NONE, render
from analysis.side_by_side import (
    NOT_HERE,
    NOT_RUN,
    OTHER_DATA,
    OTHER_NETWORK,
    OTHER_SETTING,
    SAME,
    SAME_NETWORK,
    SAME_SETTING,
    TAKEN,
    Products,
    side_by_side,
    side_by_side_table,
)
from robuq.quant.fake_quantizer import fake_quant
from robuq.quant.scales import scale_and_center
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord
from robuq.variants import variant

Records = list[RunRecord]
NOTHING = Product(pd.DataFrame(), [], "")


def made_of(plans: Sequence[Records], searches: Sequence[SearchRecord] = ()) -> Products:
    """What is read of the paper's products: which artefact is fed by which runs and searches."""
    products = {}
    for records in plans:
        feed = Feed(records[0].plan, runs_frame(records), {record.key: record for record in records})
        ids = ("warm_up",) if "warm_up" in feed.name else ("main_conditional", "figure2")
        products |= {f"{name}_{records[0].dataset}": (ARTEFACTS[name], feed, NOTHING) for name in ids}
    return products | {f"bits_{s.dataset}": (ARTEFACTS["bits"], Feed(s.name, search=s), NOTHING) for s in searches}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return plan_records("paper_main", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return plan_records("paper_main_fashion", tmp_path_factory.mktemp("fashion"), seeds="0")


@pytest.fixture(scope="module")
def compared(digits: Records, fashion: Records, make_search: Callable[..., SearchRecord]) -> pd.DataFrame:
    return side_by_side(made_of([digits, fashion], [make_search(name="digits_bits")]))


def only(data: pd.DataFrame, **wanted: object) -> pd.Series:
    """The one row with these values."""
    for column, value in wanted.items():
        data = data[data[column] == value]
    assert len(data) == 1, wanted
    return data.iloc[0]


def test_every_published_number_has_a_row(compared: pd.DataFrame) -> None:
    columns = ["artefact", "method", "metric", "published"]
    assert set(map(tuple, compared[columns].to_numpy())) == set(
        map(tuple, load_published().rename(columns={"value": "published"})[columns].to_numpy())
    )


def test_a_difference_is_given_for_one_quantity_alone(compared: pd.DataFrame) -> None:
    same = compared["verdict"].isin([SAME, SAME_NETWORK, TAKEN])
    assert compared.loc[same, "difference"].notna().all()
    assert compared.loc[~same, "difference"].isna().all()
    others = {OTHER_NETWORK, OTHER_DATA, SAME_SETTING, OTHER_SETTING, NOT_HERE, NOT_RUN}
    assert set(compared["verdict"]) == {SAME, SAME_NETWORK, TAKEN} | others


def test_differences_are_ours_minus_theirs(compared: pd.DataFrame) -> None:
    known = compared[compared["difference"].notna()]
    assert (known["ours"] - known["published"]).to_numpy() == pytest.approx(known["difference"].to_numpy())
    row = known[(known["metric"] == "W x A GFLOPs")].iloc[0]
    assert row["difference"] == pytest.approx(0.2145, abs=1e-3)  # 7.1345, where the paper has 6.92


def test_grids_agree_to_the_last_published_digit(compared: pd.DataFrame) -> None:
    grids = compared[(compared["artefact"] == "quantizers") & (compared["metric"] != "clip")]
    places = grids["published_text"].map(lambda text: len(text.partition(".")[2]))
    assert (grids["difference"].abs() <= 0.51 * 10.0**-places + 1e-6).all()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quests_clip_is_the_one_that_its_row_clips_at(compared: pd.DataFrame, bits: int) -> None:
    row = only(compared, metric="clip", act_bits=bits)
    act = variant("quest", bits).fc1.act
    far = torch.cat([torch.full((1, 1), 1000.0), torch.ones(1, 4095)], dim=1)  # clipped to the outermost level
    clip = float(fake_quant(far, *scale_and_center(far, act), act)[0, 0] / far.square().mean().sqrt())
    assert row["ours"] == pytest.approx(clip, rel=1e-5)
    assert (row["difference"], row["verdict"], row["source"]) == (0, TAKEN, "Q")


# --- runs ---------------------------------------------------------------------------------------------------------


def test_other_data_shows_our_metric_with_its_n(compared: pd.DataFrame, digits: Records) -> None:
    row = only(compared, artefact="figure2", method="Baseline", metric="IS", act_bits=2, dataset="digits")
    own = [r.metrics["classifier_score"] for r in digits if r.variant == "baseline" and r.act_bits == 2]
    assert (row["our_row"], row["our_metric"]) == ("baseline", "classifier_score")
    assert row["ours"] == pytest.approx(sum(own) / len(own))
    assert (row["n"], row["verdict"]) == (2, OTHER_DATA)
    assert math.isnan(row["difference"])


def test_ampn_of_the_papers_widths_is_shown_and_else_that_of_all(digits: Records) -> None:
    wanted = {"artefact": "figure2", "method": "RobuQ", "metric": "IS"}
    wide = [record for record in digits if (record.variant, record.act_bits) != ("robuq_to_4", 2.0)]
    data = side_by_side(made_of([wide]))
    for bits, name in ((3, "robuq_to_4"), (2, "robuq")):
        row = only(data, **wanted, act_bits=bits)
        own = [r.metrics["classifier_score"] for r in digits if r.variant == name and r.act_bits == bits]
        assert row["our_row"] == name
        assert row["ours"] == pytest.approx(sum(own) / len(own))
        assert only(data, metric="mean bits fc2", act_bits=bits)["our_row"] == name


def test_a_data_set_without_the_row_says_so(compared: pd.DataFrame) -> None:
    """The plan on Fashion-MNIST has no row at 3 bits."""
    for method, metric in (("RobuQ", "IS"), ("BitNet v2", "IS"), ("RobuQ", "mean bits proj")):
        rows = compared[(compared["method"] == method) & (compared["metric"] == metric) & (compared["act_bits"] == 3)]
        row = only(rows, dataset="fashion_mnist")
        assert (row["verdict"], row["our_row"]) == (NOT_RUN, NONE)
        assert only(rows, dataset="digits")["verdict"] != NOT_RUN


def test_the_warm_up_is_a_third_of_the_training_on_either_data_set(digits: Records, fashion: Records) -> None:
    def as_warm_up(records: Records, name: str) -> Records:
        own = [record for record in records if record.variant == "robuq" and record.act_bits == 2]
        return [record.updated(plan="paper_warm_up", variant=name) for record in own]

    data = side_by_side(made_of([as_warm_up(digits, "robuq_warm_100"), as_warm_up(fashion, "robuq_warm_50")]))
    for dataset, name in (("digits", "robuq_warm_100"), ("fashion_mnist", "robuq_warm_50")):
        assert only(data, artefact="warm_up", dataset=dataset)["our_row"] == name


def test_bits_by_role_stand_beside_the_published_ones(compared: pd.DataFrame) -> None:
    """AMPN's runs at either budget; the search's, which had the budget of two bits. A role's mean is over blocks."""
    found = compared[(compared["verdict"] == OTHER_NETWORK) & (compared["dataset"] == "digits")]
    rows = found.set_index(["our_metric", "act_bits"])
    assert rows.loc[("mean bits fc2, AMPN", 3.0), ["ours", "n", "published"]].to_list() == [1.0, 2, 2.31]
    assert rows.loc[("mean bits qkv, AMPN", 2.0), ["ours", "our_row"]].to_list() == [2.0, "robuq_to_4"]
    assert rows.loc[("mean bits proj, AMPN", 2.0), "ours_half_width"] == 0.0  # both seeds found the same
    assert rows.loc[("mean bits fc1, the search", 2.0), "our_row"] == "digits_bits"
    assert ("mean bits fc1, the search", 3.0) not in rows.index
    assert len(rows) == 4 * (2 + 1)


def test_without_any_run_there_is_one_row_for_what_runs_give() -> None:
    alone = side_by_side({})
    assert set(alone.loc[alone["metric"] == "mean bits fc1", "verdict"]) == {NOT_RUN}
    assert only(alone, metric="QAT steps")["verdict"] == NOT_RUN
    assert only(alone, metric="ternary threshold over the mean absolute weight")["verdict"] == SAME_SETTING


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "dataset", "row", "value", "verdict"),
    [
        ("rank of the low-rank branch", "DiT-XL/2", "robuq", 16, SAME_SETTING),
        ("rank of the low-rank branch", "fashion_mnist", "robuq_to_4, robuq", 2, OTHER_SETTING),  # a 64th of 128
        ("bits of adaLN weights and activations", "digits", "robuq_to_4, robuq", 4, SAME_SETTING),
        ("most bits of AMPN", "digits", "robuq_to_4", 4, SAME_SETTING),
        ("most bits of AMPN", "digits", "robuq", 8, OTHER_SETTING),
        ("QAT steps before the sensitivity", "fashion_mnist", "robuq_to_4, robuq", 50, OTHER_SETTING),
        ("images a step", "digits", "robuq_to_4, robuq", 64, OTHER_SETTING),
        ("high guidance", "digits", "robuq_to_4, robuq", 1, OTHER_SETTING),
    ],
)
def test_settings_are_those_of_our_rows(
    compared: pd.DataFrame, metric: str, dataset: str, row: str, value: float, verdict: str
) -> None:
    found = only(compared, artefact="settings", metric=metric, dataset=dataset, our_row=row)
    assert (found["ours"], found["verdict"]) == (value, verdict)


def test_the_comparison_reads_as_a_table(compared: pd.DataFrame) -> None:
    text = render(side_by_side_table(compared), "markdown")
    grid = "| mid-rise | A2 | – | step | 0.995687 [C] | 0.995687 | – | step | N(0, 1) | 0.000000 | same quantity |"
    assert grid in text
    assert "| QAT steps | 350000 [K] | 300 | robuq_to_4, robuq | QAT steps | digits | – | other setting |" in text
