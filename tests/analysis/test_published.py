"""The published numbers: their schema, and that they agree with each other where they are related."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis.paper import ARTEFACTS
from analysis.published import REFERENCE, SOURCES, TYPES, load_published, published, published_table
from analysis.render import render
from experiments.plan import load_plan
from robuq.config import model_preset
from robuq.cost import layer_costs
from robuq.variants import VARIANTS, variant


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return load_published()


def value(data: pd.DataFrame, **wanted: object) -> float:
    rows = data
    for column, one in wanted.items():
        rows = rows[rows[column] == one]
    assert len(rows) == 1, wanted
    return float(rows["value"].iloc[0])


# --- schema -------------------------------------------------------------------------------------------------------


def test_every_number_has_a_known_source_and_says_how_it_was_read(data: pd.DataFrame) -> None:
    assert set(data["source"]) <= set(SOURCES)
    assert (data["reading"].str.len() > 5).all()
    assert (data.loc[data["uncertainty"].notna(), "source"] == "S").all()  # only what was read off a figure


def test_columns_have_their_types(data: pd.DataFrame) -> None:
    assert {name: str(data[name].dtype) for name in TYPES} == TYPES


def test_named_rows_of_ours_exist(data: pd.DataFrame) -> None:
    rows = {
        run.variant
        for plan in ("paper_main", "paper_quantizers", "paper_components", "paper_warm_up")
        for run in load_plan(plan).runs
    }
    assert set(data["variant"].dropna()) <= set(VARIANTS) | rows


def test_artefacts_name_numbers_that_exist_and_no_number_is_lost(data: pd.DataFrame) -> None:
    shown = {name for artefact in ARTEFACTS.values() for name in artefact.published}
    assert shown == set(data["artefact"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("artefact,method,variant", "artefact,method", "^ablations.csv: columns are artefact, method, label"),
        ("41.59", "forty", "column value: could not convert"),
        ("41.59", "4159", "FID of BitNet v2 is 4159: FID lies from 0 to 500"),
        ("41.59", "", "FID of BitNet v2 has no value"),
        (",K,", ",X,", "has source 'X': sources are A"),
        ("quoted in reading notes; width, protocol and guidance are not said", "", "has no reading"),
        (",,,,,K", ",-1,,,,K", "no less than 0|an uncertainty is above it"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (REFERENCE / "ablations.csv").read_text()
    assert old in text
    (tmp_path / "ablations.csv").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        load_published(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_number_given_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        shutil.copy(REFERENCE / "ablations.csv", tmp_path / name)
    with pytest.raises(ValueError, match=r"^b\.csv: FID of BitNet v2 comes twice"):
        load_published(tmp_path)


def test_no_numbers_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no published numbers"):
        load_published(tmp_path)


# --- consistency --------------------------------------------------------------------------------------------------


def test_table_2a_goes_down_with_every_component(data: pd.DataFrame) -> None:
    steps = published("components", data)["value"].to_list()
    assert [round(a - b, 2) for a, b in itertools.pairwise(steps)] == [12.00, 8.77]


def test_more_images_and_steps_lower_every_distance(data: pd.DataFrame) -> None:
    """A Fréchet distance falls with the number of images: a swapped column would show."""
    table = data[data["artefact"] == "main_conditional"]
    wide = table.pivot(index=["method", "label", "metric"], columns="images", values="value").dropna().reset_index()
    distances, scores = wide[wide["metric"] != "IS"], wide[wide["metric"] == "IS"]
    assert len(distances) == 18
    assert (distances[50000.0] < distances[10000.0]).all()
    assert (scores[50000.0] > scores[10000.0]).all()


def test_figure_2_counts_the_low_rank_branch_as_we_do(data: pd.DataFrame) -> None:
    """2.1 GFLOPs between the baseline and BitNet v2 at 4 bits, to the figure's decimal."""
    flops = data[(data["artefact"] == "figure2") & (data["metric"] == "GFLOPs") & (data["act_bits"] == 4)]
    drawn = value(flops, variant="baseline") - value(flops, variant="bitnet_v2")
    costs = layer_costs(model_preset("DiT-XL/2"), variant("baseline", 4))
    assert drawn == pytest.approx(sum(cost.low_rank_macs for cost in costs) / 1e9, abs=0.1)


def test_figure_2_costs_the_same_with_and_without_ampn(data: pd.DataFrame) -> None:
    flops = data[(data["artefact"] == "figure2") & (data["metric"] == "GFLOPs")]
    for bits in (3, 2):
        one, other = (value(flops, variant=name, act_bits=bits) for name in ("robuq_to_4", "robuq_uniform"))
        assert one == other


@pytest.mark.parametrize(("metric", "weights"), [("mean bits by layers", "layers"), ("mean bits by MACs", "macs")])
def test_mean_bits_follow_from_those_of_the_roles(data: pd.DataFrame, metric: str, weights: str) -> None:
    """In a DiT block the MACs of qkv, proj, fc1 and fc2 are as 3 : 1 : 4 : 4."""
    bits = data[(data["artefact"] == "bits") & (data["act_bits"] == 2)]
    shares = (
        {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 4}
        if weights == "macs"
        else dict.fromkeys(("qkv", "proj", "fc1", "fc2"), 1)
    )
    mean = sum(n * value(bits, metric=f"mean bits {role}") for role, n in shares.items()) / sum(shares.values())
    assert value(bits, metric=metric) == pytest.approx(mean, abs=5e-4)


def test_the_as_coded_grid_costs_27_percent_at_two_bits(data: pd.DataFrame) -> None:
    errors = data[(data["artefact"] == "quantizers") & (data["metric"] == "MSE") & (data["act_bits"] == 2)]
    assert round(100 * (value(errors, method="as coded") / value(errors, method="mid-rise") - 1)) == 27


# --- shown --------------------------------------------------------------------------------------------------------


def test_numbers_keep_the_decimals_they_were_published_with(data: pd.DataFrame) -> None:
    text = render(published_table(published("main_conditional", data)), "markdown")
    assert "| 6.78 | 20.56 | 243.70 | J |" in text
    assert "10,000 images, 50 steps, guidance 1.5" in text
    assert "| TreeQ | W4A4 | ImageNet-256 | 36,900 |" in text


def test_a_published_table_marks_nothing_and_names_its_sources(data: pd.DataFrame) -> None:
    for name in data["artefact"].unique():
        table = published_table(published(name, data))
        assert (table.marks == "").all(axis=None)
        assert "never ranked" in table.caption
        for form in ("markdown", "latex", "html"):
            assert "nan" not in render(table, form).lower()  # type: ignore[arg-type]
