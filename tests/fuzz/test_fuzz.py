"""The short form of the fuzzing: every surface, the same cases each time. `make fuzz N=...` does tens of thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import surfaces_data as data
import surfaces_files as files
import surfaces_settings as hand
from contract import ACCEPTED, Ended, check_refusal, contents
from fuzz import SURFACES, table, tally
from hostile import YAML_BOMBS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from surfaces import Surface, Tally

CASES = 60  # of a surface whose share is 1: CPU time is spent on about a thousand commands and readings


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
def test_bad_input_is_one_line_and_changes_nothing(surface: Surface) -> None:
    @settings(
        max_examples=max(20, round(CASES * surface.share)),
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(surface.cases)
    def check(case: object) -> None:
        surface.run(case)

    check()


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("plan files: YAML", hand.yaml_of(hand.PLAN)),
        ("plan files: values", hand.PLAN),
        ("search files: values", hand.SEARCH),
        ("--set", ("smoke", ["train.steps=7"])),
        ("configuration classes, quantization specs", (hand.SearchConfig, {})),
        ("command lines of every verb", ["plan", "smoke"]),
        ("digits: settings", {}),
        ("image folders", ({f"{c}/{i}.png": data.PICTURES["good"] for c in "ab" for i in range(3)}, {})),
        ("IDX files", data.fashion()),
        ("cached latents", data.npz(latents=data.LATENTS, labels=data.LABELS)),
        ("networks: diffusers' layout", files.network()),
        ("networks: quantized", files.quantized()),
        ("feature classifiers", files.classifier()),
        ("checkpoints", files.checkpoints()),
        ("bits.json", files.json.dumps(files.BITS).encode()),
        ("sensitivity.json", files.json.dumps(files.TABLE).encode()),
        ("records, stages and what they say", files.recorded()),
        ("the paper's manifest", (files.json.dumps(files.MANIFEST).encode(), "")),
    ],
)
def test_what_is_undamaged_is_accepted(name: str, case: object) -> None:
    """Or the surfaces above would prove nothing: there, anything may be refused."""
    (surface,) = (surface for surface in SURFACES if surface.name == name)
    assert surface.run(case) == ACCEPTED


def test_every_surface_has_an_undamaged_case() -> None:
    marks = test_what_is_undamaged_is_accepted.pytestmark  # type: ignore[attr-defined]
    assert [case[0] for case in marks[0].args[1]] == [surface.name for surface in SURFACES]


def test_a_broken_contract_is_counted() -> None:
    def check(case: int, folder: object) -> str:
        assert case % 10
        return ACCEPTED

    found = tally(Surface("x", st.integers(0, 10**9), check), 200, 0)
    assert found.ends.total() == 200
    assert len(found.failures) == found.ends["failed"] > 0
    assert (
        table({"x": found}).splitlines()[-1]
        == f"| together | 200 | 0 | {found.ends[ACCEPTED]} | {len(found.failures)} |"
    )
    assert Tally().failures == []


# --- real processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "bomb.yaml"], "anchors and aliases"),
        (["sweep", "tags.yaml", "--executor", "local"], "tags"),
        (["train", "minmax", "--preset", "nano", "--set", "train.lr=nan"], "train.lr: input should be a valid number"),
        (["plan", "smoke", "--set", "model.num_layers=1000000000"], "less than or equal to 1000"),
        (["report", "smoke\x1b[2J"], "no plan"),
        (["status", "smoke", "--output", "x" * 300], "choose another --output"),
    ],
    ids=["bomb", "tags", "nan", "huge", "control characters", "too long"],
)
def test_real_commands(tmp_path: Path, words: list[str], said: str) -> None:
    """As above, but by the system: nothing else reaches the terminal, warnings of libraries included."""
    (tmp_path / "bomb.yaml").write_text(YAML_BOMBS[0])
    (tmp_path / "tags.yaml").write_text(YAML_BOMBS[2])
    before = contents(tmp_path)
    command = [sys.executable, "-m", "experiments.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    check_refusal(Ended(done.returncode, done.stdout, done.stderr))
    assert said in done.stderr
    assert contents(tmp_path) == before
