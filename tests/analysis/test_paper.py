"""The registry, the folder that it builds, the comparison with published numbers, and the way back to the runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from paper_records import plan_records
from PIL import Image
from shape_arrays import BINS, BLOCKS, ROLES

from analysis.figures import convergence
from analysis.paper import ARTEFACTS, paper_plans, paper_searches
from analysis.paper_folder import Built, Recorded, build_all, gap_lines
from analysis.provenance import flat, provenance, provenance_lines
from experiments.plan import packaged_plans
from experiments.search_file import packaged_searches
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord

PLANNED = dict.fromkeys(("paper_main", "paper_quantizers"), 68)
IDS = {
    "main_conditional", "main_unconditional", "components", "quantizers", "warm_up", "cost",
    "figure2", "samples", "distributions", "curves", "bits", "pareto", "central_limit", "kl_by_depth", "tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    return plan_records("paper_main", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def recorded(records: list[RunRecord], make_search: Callable[..., SearchRecord]) -> Recorded:
    search = make_search(name="digits_bits", confirmed={"uniform": [records[0].key]})
    front = make_search(name="paper_pareto", front=[0, 1, 2], objectives=("loss", "average_bits"))
    return Recorded({"paper_main": records}, PLANNED, {"digits_bits": search, "paper_pareto": front})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module", autouse=True)
def few_values() -> Iterator[None]:
    """Of each point of the central limit theorem's rate: a 64th of the paper's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convergence, "VALUES", convergence.VALUES // 64)
        yield


@pytest.fixture(scope="module")
def built(recorded: Recorded, folder: Path) -> Built:
    return build_all(folder, recorded)


# --- the registry -------------------------------------------------------------------------------------------------


def test_every_artefact_of_the_paper_has_an_id() -> None:
    assert set(ARTEFACTS) >= IDS
    assert all(artefact.id == name for name, artefact in ARTEFACTS.items())


def test_what_feeds_an_artefact_is_shipped() -> None:
    assert set(paper_plans()) <= set(packaged_plans())
    assert set(paper_searches()) <= set(packaged_searches())


# --- the folder ---------------------------------------------------------------------------------------------------


def test_what_can_be_built_is_built_and_the_rest_is_listed_with_its_command(built: Built) -> None:
    claims = {f"claims_{plan}" for plan in ("components", "quantizers", "warm_up")}
    not_digits = {"main_unconditional", "components", "quantizers", "warm_up", "cost", *claims}
    assert set(built.products) == {f"{name}_digits" for name in set(ARTEFACTS) - not_digits} | {"cost"}
    gaps = {(gap.artefact, gap.command) for gap in built.gaps}
    assert ("main_conditional", "robuq sweep paper_main_fashion") in gaps
    assert ("bits", "robuq search fashion_bits") in gaps
    assert ("quantizers", "robuq sweep paper_quantizers") in gaps
    assert ("main_conditional", "robuq sweep paper_main") not in gaps


def test_every_product_has_all_its_forms(built: Built, folder: Path) -> None:
    for name, (artefact, _, _) in built.products.items():
        forms = ("md", "tex", "html", "csv") if artefact.kind == "table" else ("pdf", "png", "tex", "csv")
        assert all((folder / f"{name}.{form}").is_file() for form in forms)
    assert {file.name for file in built.files} == {file.name for file in folder.iterdir()}


def test_captions_say_what_and_of_which_data_and_labels_are_unique(built: Built, folder: Path) -> None:
    labels = []
    for name, (artefact, _, product) in built.products.items():
        text = (folder / f"{name}.tex").read_text(encoding="ascii")
        title = f"{artefact.title}, digits. " if name.endswith("_digits") else f"{artefact.title}. "
        assert rf"\caption{{{title}" in text
        assert product.caption.startswith(title)
        labels += re.findall(r"\\label\{(.*)\}", text)
    kinds = {"table": "tab", "figure": "fig"}
    assert labels == [f"{kinds[artefact.kind]}:{name}" for name, (artefact, _, _) in built.products.items()]
    published = (folder / "main_conditional_published.tex").read_text(encoding="ascii")
    assert r"\caption{Main table: conditional: published numbers. Published" in published
    assert r"\label{tab:main_conditional_published}" in published


def test_figures_are_one_column_wide_with_embedded_fonts(built: Built, folder: Path) -> None:
    for name, (artefact, _, _) in built.products.items():
        if artefact.kind == "figure":
            with Image.open(folder / f"{name}.png") as image:
                assert image.width == 990  # 3.3 inches at 300 dpi
            assert b"/Type3" not in (folder / f"{name}.pdf").read_bytes()


def test_every_link_of_the_page_leads_somewhere(built: Built, folder: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", built.files[0].read_text(encoding="utf-8"))
    assert len(links) > 20
    assert [link for link in links if not (folder / link).is_file()] == []


def test_published_numbers_stand_apart_in_the_page(built: Built) -> None:
    page = built.files[0].read_text(encoding="utf-8")
    ours, published = (page.index(f"### main_conditional{end}\n") for end in ("_digits", ": published"))
    assert ours < page.index("| RobuQ with AMPN, 1 to 4 bits | W1.58A2 |") < published < page.index("| TerDiT |")


def test_equal_records_give_equal_bytes(recorded: Recorded, tmp_path: Path) -> None:
    shuffled = Recorded({"paper_main": list(reversed(recorded.plans["paper_main"]))}, PLANNED)
    straight = Recorded({"paper_main": recorded.plans["paper_main"]}, PLANNED)
    one, other = (
        build_all(tmp_path / name, what, ["main_conditional", "samples"])
        for name, what in (("one", straight), ("other", shuffled))
    )
    assert [file.name for file in other.files] == [file.name for file in one.files]
    assert [a.name for a, b in zip(one.files, other.files, strict=True) if a.read_bytes() != b.read_bytes()] == []


def test_a_single_artefact_is_built_alone(recorded: Recorded, tmp_path: Path) -> None:
    made = build_all(tmp_path, recorded, ["cost"])
    assert set(made.products) == {"cost"}
    assert made.gaps == []
    with pytest.raises(ValueError, match="no artefact 'costs': there are main_conditional"):
        build_all(tmp_path, recorded, ["costs"])


def test_a_plan_recorded_in_part_is_built_and_said_to_be_partial(records: list[RunRecord], tmp_path: Path) -> None:
    made = build_all(tmp_path, Recorded({"paper_main": records[:40]}, PLANNED), ["main_conditional"])
    assert "main_conditional_digits" in made.products
    (gap,) = (gap for gap in made.gaps if gap.partly)
    assert gap.reason == "paper_main: 40 of 68 runs are recorded"


def test_runs_of_other_protocols_are_refused_not_mixed(records: list[RunRecord], tmp_path: Path) -> None:
    mixed = [records[0].updated(protocol="b" * 12), *records[1:]]
    made = build_all(tmp_path, Recorded({"paper_main": mixed}, PLANNED), ["main_conditional"])
    assert made.products == {}
    assert any("refused: protocols" in gap.reason for gap in made.gaps)


def test_what_is_missing_is_one_line_a_command(built: Built) -> None:
    lines = gap_lines(built.gaps)
    (line,) = (line for line in lines if line.endswith("robuq sweep paper_main_fashion"))
    assert line.startswith("missing: main_conditional, claims_main, figure2, samples, distributions")


def test_a_run_of_two_plans_keeps_its_name_in_each(records: list[RunRecord], tmp_path: Path) -> None:
    """RobuQ with its usual warm-up is a row of the main table and, under another name, of table 2c."""
    own = [record for record in records if record.variant == "robuq"]
    other = [record.updated(plan="paper_warm_up", variant="robuq_warm_100") for record in own]
    build_all(tmp_path, Recorded({"paper_main": records, "paper_warm_up": other}), ["main_conditional", "warm_up"])
    for name, variant in (("main_conditional", "robuq"), ("warm_up", "robuq_warm_100")):
        found = provenance(tmp_path / f"{name}_digits.csv", f"{variant} W1.58A2", "recall")
        assert {run["variant"] for run in found.runs.values()} == {variant}  # and not ptq_robuq's, too


def test_nothing_recorded_leaves_what_is_computed(tmp_path: Path) -> None:
    made = build_all(tmp_path, Recorded())
    assert set(made.products) == {"cost", "central_limit"}
    assert {gap.artefact for gap in made.gaps} == set(ARTEFACTS) - {"cost"}


# --- the shapes of distributions ----------------------------------------------------------------------------------


def test_the_theorems_rate_stands_beside_a_trained_network(built: Built, folder: Path) -> None:
    data = pd.read_csv(folder / "central_limit_digits.csv")
    assert set(data["measure"]) == {"over tokens", "within a token", "kl", "trained network"}
    assert (data["measure"] == "trained network").sum() == len(ROLES) * BLOCKS * BINS
    _, _, product = built.products["central_limit_digits"]
    assert "2^14 values a point" in product.caption
    assert "one draw of signs" in product.caption


def test_the_rate_alone_needs_no_run(tmp_path: Path) -> None:
    made = build_all(tmp_path, Recorded(), ["central_limit"])
    _, _, product = made.products["central_limit"]
    assert product.cells == []
    assert "trained network" not in set(product.data["measure"])
    assert "signs" not in product.caption
    assert "no run is behind it" in provenance_lines(provenance(tmp_path / "central_limit.csv"), lambda *_: None)[0]


def test_depth_and_token_captions_say_what_the_bands_are(built: Built) -> None:
    depth, tokens = (built.products[f"{name}_digits"][2] for name in ("kl_by_depth", "tokens"))
    assert f"means over {BINS} bins of timesteps, 300 tokens in each" in depth.caption
    assert len(depth.data) == len(ROLES) * BLOCKS * 2
    assert "of block 1," in tokens.caption
    assert "from the 10 % to the 90 % quantile" in tokens.caption
    assert set(tokens.data["block"]) == {1}


def test_figures_of_histograms_say_how_many_tokens_they_have(built: Built) -> None:
    by_role, by_timestep = (
        built.products[f"distributions_by_{name}_digits"][2].caption for name in ("role", "timestep")
    )
    assert f"over all timesteps, {BINS * 300} tokens a layer" in by_role
    assert "much noise: 300 tokens each." in by_timestep


# --- provenance ---------------------------------------------------------------------------------------------------


def test_the_manifest_names_every_run_of_the_table(built: Built, folder: Path, records: list[RunRecord]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    cells = manifest["artefacts"]["main_conditional_digits"]["cells"]
    assert {key for cell in cells for key in cell["keys"]} == {record.key for record in records}
    assert manifest["runs"]["paper_main"][records[0].key]["git"]["commit"].startswith("c0ffee")


def test_a_cell_is_the_mean_of_the_runs_that_it_names(built: Built, folder: Path, records: list[RunRecord]) -> None:
    found = provenance(folder / "main_conditional_digits.csv", "robuq_uniform W1.58A2", "fd_classifier")
    keys = {key for cell in found.cells for key in cell["keys"]}
    own = [record.metrics["fd_classifier"] for record in records if record.key in keys]
    data = pd.read_csv(folder / "main_conditional_digits.csv", float_precision="round_trip")
    row = data[(data["variant"] == "robuq_uniform") & (data["bits"] == 2)].iloc[0]
    assert row["fd_classifier"] == pytest.approx(sum(own) / len(own), rel=1e-12)
    assert len(own) == row["n"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "figure2_digits.pdf",
        "samples_digits.png",
        "distributions_digits.csv",
        "curves_digits.pdf",
        "central_limit_digits.png",
        "kl_by_depth_digits.csv",
        "tokens_digits.pdf",
    ],
)
def test_figures_name_their_runs(built: Built, folder: Path, records: list[RunRecord], name: str) -> None:
    found = provenance(folder / name)
    assert found.runs
    assert set(found.runs) <= {record.key for record in records}


@pytest.mark.parametrize(
    ("file", "row", "cells"),
    [
        ("main_conditional_digits.csv", "robuq W1.58A2", {"robuq W1.58A2"}),  # exactly, not ptq_robuq's
        ("main_conditional_digits.csv", "robuq", {f"robuq W1.58A{bits}" for bits in (4, 3, 2)}),
        ("main_conditional_digits.csv", "PTQ RobuQ W1.58A3", {"ptq_robuq W1.58A3"}),  # as the table shows it
        ("main_conditional_digits.csv", "robuq without ampn w1.58a2", {"robuq_uniform W1.58A2"}),  # words of it
        ("main_conditional_digits.csv", "to_4 W1.58A2", {"robuq_to_4 W1.58A2"}),
        ("figure2_digits.pdf", "RobuQ A2", {"robuq_uniform A2"}),  # as the figure shows it
        ("figure2_digits.pdf", "full_precision", {"full_precision"}),  # which has no width
    ],
)
def test_a_row_is_found_by_its_name_or_by_words_of_it(
    built: Built, folder: Path, file: str, row: str, cells: set[str]
) -> None:
    assert {cell["row"] for cell in provenance(folder / file, row).cells} == cells


def test_provenance_prints_keys_code_and_settings(built: Built, folder: Path, records: list[RunRecord]) -> None:
    configs = {record.key: record.config for record in records}
    with pytest.raises(ValueError, match=r"has no cell baseline W1\.58A2, difference"):
        provenance(folder / "main_conditional_digits.md", "baseline W1.58A2", "difference")
    found = provenance(folder / "main_conditional_digits.md", "robuq_uniform W1.58A2", "difference")
    text = "\n".join(provenance_lines(found, lambda plan, key: configs.get(key)))
    assert "4 runs" in text  # the row's two seeds and the baseline's
    assert "commit c0ffee000000; python 3.11.2, torch 2.13.0" in text
    assert "  train.steps: 300" in text
    assert re.search(r'settings of \w+: .*variant: "baseline"', text)
    bare = provenance_lines(found, lambda plan, key: None)
    assert any(line.startswith("settings of 4 runs are not at hand") for line in bare)


def test_what_has_no_provenance_says_so(built: Built, folder: Path, tmp_path: Path) -> None:
    stray = tmp_path / "table.md"
    stray.write_text("x")
    for file, message in (
        (stray, "no manifest.json beside table.md"),
        (folder / "cost_published.md", "published numbers have sources, not runs"),
        (folder / "gone.md", "no file"),
    ):
        with pytest.raises(ValueError, match=message):
            provenance(file)
    with pytest.raises(ValueError, match="has no cell nothing, any: rows are"):
        provenance(folder / "main_conditional_digits.md", "nothing")
    assert "no run is behind it" in provenance_lines(provenance(folder / "cost.md"), lambda plan, key: None)[0]


def test_flat_keeps_empty_parts() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
