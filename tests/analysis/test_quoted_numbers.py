"""Every mean with an interval that the README and the findings quote is, to its last digit, in a table that is kept
under docs/results: prose that was not written anew with its tables fails here."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
NUMBER = r"[−-]?\d+(?:\.\d+)?"
PLUS_MINUS = re.compile(rf"({NUMBER})\s+±\s+({NUMBER})")
BETWEEN = re.compile(rf"({NUMBER})\s+\[({NUMBER}),\s+({NUMBER})\]")

Estimate = tuple[float, float, float]  # value, low, high


def kept_estimates() -> list[Estimate]:
    found = []
    for path in sorted(RESULTS.rglob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name in row:
                    cells = (row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
                    if all(cells):
                        value, low, high = map(float, map(str, cells))
                        found.append((value, low, high))
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def rounds_to(value: float, text: str) -> bool:
    """Whether `value`, printed with as many decimals as `text`, is `text`: half of the last digit is the tolerance."""
    decimals = len(text.partition(".")[2])
    return abs(value - number(text)) <= 0.5 * 10**-decimals * (1 + 1e-9)


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md"])
def test_quoted_means_and_intervals_are_those_of_the_kept_tables(page: str) -> None:
    text, kept = (ROOT / page).read_text(), kept_estimates()
    spread = {  # prose may turn a difference round: "lower by 0.0083"
        quoted.group(): any(
            (rounds_to(value, quoted[1]) or rounds_to(-value, quoted[1])) and rounds_to((high - low) / 2, quoted[2])
            for value, low, high in kept
        )
        for quoted in PLUS_MINUS.finditer(text)
    }
    between = {
        quoted.group(): any(
            all(rounds_to(each, printed) for each, printed in zip(estimate, quoted.groups(), strict=True))
            for estimate in kept
        )
        for quoted in BETWEEN.finditer(text)
    }
    assert len(spread) + len(between) > 10
    assert [text for text, stands in (spread | between).items() if not stands] == []


def test_a_number_that_no_table_has_is_noticed() -> None:
    assert rounds_to(0.00834, "0.0083")
    assert not rounds_to(0.00836, "0.0083")
    assert rounds_to(-0.00835, "−0.0083")
    assert not rounds_to(0.0083, "−0.0083")


def test_measured_speeds_in_the_readme_are_those_of_their_reports() -> None:
    table = (ROOT / "README.md").read_text().partition("## How fast it is")[2].partition("## ")[0]
    report, missing, seen = "", [], 0
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and re.search(r"\d", cells[1]):
            if link := re.search(r"\((.*?)\)", cells[3]):  # an empty cell: the report of the row above
                report = (ROOT / link[1]).read_text()
            of_report = [number(text) for text in re.findall(NUMBER, report)]
            quoted = re.findall(NUMBER, cells[1])
            seen += len(quoted)
            missing += [(cells[0], text) for text in quoted if not any(rounds_to(each, text) for each in of_report)]
    assert seen > 5
    assert missing == []
