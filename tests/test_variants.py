"""Contract over every named recipe: valid at all widths, plain data, one identity each."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys

import pytest

from robuq.config import BLOCK_ROLES, ConfigError, PrecisionMap, RunConfig, display_label, module_names, resolve_specs
from robuq.models import build_dit
from robuq.variants import ADALN_4, ATTENTION_8, VARIANTS, ampn, recipe, variant

CONTROLS = (
    "full_precision",
    "ternary_only",
    "ternary_rotation",
    "ternary_low_rank",
    "ternary_low_rank_rotation",
)  # activations stay
NAMES = sorted(VARIANTS)
QUANTIZED = sorted(set(VARIANTS) - set(CONTROLS))


def run_of(name: str, bits: int = 2) -> RunConfig:
    return RunConfig(variant=name, precision=variant(name, bits), ampn=ampn(name, bits))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_recipe_survives_json_at_every_width(name: str, bits: int) -> None:
    precision = variant(name, bits)
    assert PrecisionMap.model_validate_json(precision.to_json()) == precision
    run = run_of(name, bits)
    assert RunConfig.model_validate_json(run.to_json()) == run


def test_every_recipe_and_width_has_its_own_key() -> None:
    runs = [run_of(name, bits) for name, bits in itertools.product(QUANTIZED, range(1, 9))]
    runs += [run_of(name) for name in CONTROLS]
    keys = {run.key() for run in runs}
    assert len(keys) == len(runs) == 8 * len(QUANTIZED) + len(CONTROLS)


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_width_is_that_of_the_block_linears_and_of_nothing_else(name: str) -> None:
    narrow, wide = variant(name, 2), variant(name, 5)
    for role in BLOCK_ROLES:
        assert (getattr(narrow, role).act.bits, getattr(wide, role).act.bits) == (2, 5)
        assert getattr(narrow, role).updated(act=None) == getattr(wide, role).updated(act=None)
    rest = dict.fromkeys(BLOCK_ROLES)
    assert narrow.updated(**rest) == wide.updated(**rest)
    assert display_label(narrow).endswith("A2")


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_leave_activations_alone_at_every_width(name: str) -> None:
    assert variant(name, 2) == variant(name, 7)
    assert display_label(variant(name)).endswith("A32")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full_precision"])
def test_fixed_roles_are_the_papers(name: str) -> None:
    precision = variant(name)
    assert (precision.attention, precision.adaln) == (ATTENTION_8, ADALN_4)
    assert precision.embeddings is precision.final is None


def test_full_precision_quantizes_nothing() -> None:
    assert variant("full_precision").is_full_precision()


def test_components_differ_in_what_their_names_say() -> None:
    """Along the table's rows exactly one of transform, low-rank branch and activations changes."""
    specs = {name: variant(name, 2).fc2 for name in NAMES}
    steps = [
        ("minmax", "minmax_low_rank", {"low_rank"}),
        ("minmax", "minmax_rotation", {"transform"}),
        ("minmax_low_rank", "baseline", {"transform"}),
        ("baseline", "robuq_uniform", {"act"}),
        ("robust_no_rotation", "robuq_uniform", {"transform"}),
        ("ternary_only", "ternary_rotation", {"transform"}),
        ("ternary_only", "ternary_low_rank", {"low_rank"}),
        ("ternary_rotation", "ternary_low_rank_rotation", {"low_rank"}),
        ("ternary_low_rank_rotation", "robuq_uniform", {"act"}),
    ]
    for one, other, expected in steps:
        a, b = specs[one], specs[other]
        assert a is not None
        assert b is not None
        assert {part for part in type(a).model_fields if getattr(a, part) != getattr(b, part)} == expected, (one, other)


def test_ampn_is_robuq_with_a_mean_for_a_width() -> None:
    assert variant("robuq", 3) == variant("robuq_uniform", 3)
    assert ampn("robuq_uniform", 3) is None
    run = run_of("robuq", 3)
    assert run.ampn is not None
    assert (run.ampn.budget.limit, run.ampn.budget.weights, run.label) == (3.0, "macs", "W1.58A3")


def test_bitnet_v2_rotates_proj_and_fc2_only() -> None:
    precision = variant("bitnet_v2")
    kinds = {role: getattr(precision, role).transform.kind for role in BLOCK_ROLES}
    assert kinds == {"qkv": "identity", "proj": "hadamard", "fc1": "identity", "fc2": "hadamard"}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_names_modules_that_exist_in_every_block(name: str) -> None:
    run = RunConfig(variant=name, precision=variant(name))
    specs = resolve_specs(run.precision, run.model.num_layers)
    modules = dict(build_dit(run.model, seed=0).named_modules())
    assert set(specs) <= set(modules)
    blocks = {
        module for block in range(run.model.num_layers) for role in BLOCK_ROLES for module in module_names(block, role)
    }
    assert blocks <= set(specs) or name == "full_precision"


def test_every_recipe_says_in_one_line_what_it_is() -> None:
    for name, function in VARIANTS.items():
        if not name.startswith("robust_ptq_"):  # these share one function's text
            text = inspect.getdoc(function)
            assert text, name
            assert text.splitlines()[0].endswith("."), name


@pytest.mark.parametrize(
    ("name", "hint"),
    [("robuq_unifrom", "did you mean 'robuq_uniform'"), ("Baseline", "did you mean 'baseline'"), ("", "allowed: base")],
)
def test_unknown_names_get_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"^unknown variant '{name}' - {hint}"):
        variant(name)


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        variant("robuq_uniform", bits)


def test_one_more_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robuq.variants.VARIANTS", VARIANTS.copy())

    @recipe
    def eight_bit_adaln(act_bits: int) -> PrecisionMap:
        """RobuQ without the fixed role of adaLN."""
        return variant("robuq_uniform", act_bits).updated(adaln=None)

    assert variant("eight_bit_adaln", 3) == eight_bit_adaln(3) != variant("robuq_uniform", 3)


def test_recipes_are_free_of_torch() -> None:
    code = "import sys, robuq.variants, robuq.stages; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
