from __future__ import annotations

import pandas as pd
import pytest

from analysis.render import NONE
from analysis.tables.cost import CLASSES, MODELS, ROWS, cost_data, cost_table, significant, unit_of


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return cost_data()


def test_every_network_has_every_row(data: pd.DataFrame) -> None:
    assert len(data) == len(MODELS) * sum(len(widths) for _, _, widths in ROWS)


def test_parts_sum_to_the_whole(data: pd.DataFrame) -> None:
    parts = 1024e9 * data[[f"g_{kind}" for kind in CLASSES]].sum(axis=1)
    assert parts.to_numpy() == pytest.approx(data["bops"].to_numpy(), rel=1e-12)


def test_full_precision_is_the_known_network(data: pd.DataFrame) -> None:
    """DiT-XL/2 in Peebles and Xie's table: 118.6 GFLOPs, 675 million parameters."""
    row = data[(data["model"] == "DiT-XL/2") & (data["variant"] == "full_precision")].iloc[0]
    assert row["paper_total"] == pytest.approx(118.6, abs=0.1)
    assert row["weight_bytes"] / 4 == pytest.approx(675e6, rel=0.01)
    assert row["speed_up"] == row["compression"] == 1.0


def test_fewer_bits_cost_less_in_the_block_linears_alone(data: pd.DataFrame) -> None:
    own = data[(data["model"] == "DiT-XL/2") & (data["variant"] == "robuq_uniform")].set_index("act_bits")
    assert own.loc[2, "g_W x A"] == pytest.approx(own.loc[4, "g_W x A"] / 2)
    for kind in set(CLASSES) - {"W x A"}:
        assert own.loc[2, f"g_{kind}"] == own.loc[4, f"g_{kind}"]


def test_the_unit_is_one_for_a_network(data: pd.DataFrame) -> None:
    units = {model: {unit_of(row)[0] for _, row in part.iterrows()} for model, part in data.groupby("model")}
    assert units == {"DiT-XL/2": {"T"}, "fashion": {"G"}, "digits": {"G"}}


def test_only_the_papers_network_has_its_count(data: pd.DataFrame) -> None:
    cells = cost_table(data).cells
    others = cells[~cells["Network"].str.startswith("DiT-XL/2")]
    assert set(others["GFLOPs as drawn"]) == {NONE}
    assert cells["GFLOPs as drawn"].to_list()[3] == "10.55"


@pytest.mark.parametrize(
    ("value", "text"), [(0, NONE), (0.0012345, "0.00123"), (0.09999, "0.100"), (12.345, "12.3"), (123456, "123456")]
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text
