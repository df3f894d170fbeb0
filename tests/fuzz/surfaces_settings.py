"""Surfaces of what is written by hand: plans, searches, overrides, configuration classes, and command lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from contract import ACCEPTED, REFUSED, check_call, check_command, check_refusal, command
from hostile import documents, mutated, numbers, scalars, texts, values
from hypothesis import strategies as st
from surfaces import Surface

from robuq.config import (
    ActQuant,
    AmpnConfig,
    BitAllocation,
    Budget,
    CalibrationConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    FeatureConfig,
    LossConfig,
    LowRank,
    ModelConfig,
    PrecisionMap,
    QuantSpec,
    RunConfig,
    SampleConfig,
    SearchConfig,
    SensitivityConfig,
    TrainConfig,
    Transform,
    WeightQuant,
)
from robuq.variants import variant

PLAN: dict[str, Any] = {
    "name": "fuzzed",
    "description": "What it shows.",
    "preset": "nano",
    "base": {"train.steps": 6, "evaluation": {"sample": {"steps": 2}}, "calibration.num_images": 32},
    "grid": {"variant": ["minmax", "robuq_uniform"], "act_bits": [2]},
    "zip": {"train.lr": [1e-3, 2e-3], "train.batch_size": [8, 16]},
    "include": [{"variant": "full_precision", "name": "reference", "grid": {"train.lr": [1e-3]}}],
    "exclude": [{"variant": "minmax", "act_bits": [4]}],
    "ablate": {"mode": "minus_one", "components": {"rotation": {"on": {}, "off": {"block_linears.act.bits": 3}}}},
    "seeds": [0],
    "pretrain_seeds": [0],
    "report": {"baseline": "reference"},
}
SEARCH: dict[str, Any] = {
    "name": "fuzzed_search",
    "description": "What it shows.",
    "preset": "nano",
    "base": {"variant": "robuq", "act_bits": 2, "train.steps": 6},
    "seed": 0,
    "pretrain_seed": 0,
    "ampn": {"budget": {"limit": 2.5, "weights": "macs"}, "measure": "loss", "sensitivity": {"warm_up_steps": 2}},
    "search": {
        "space": "block",
        "sampler": "tpe",
        "evaluations": 8,
        "rungs": [{"steps": 0, "keep": 0.5}, {"steps": 4}],
        "prune_after": 4,
        "objectives": ["loss"],
        "enqueue": ["uniform", "exact"],
        "seed": 0,
        "confirm_seeds": [1],
    },
    "predictors": [{"warm_up_steps": 0}],
    "confirm_longer": True,
}
CONFIGS: tuple[Config, ...] = (
    ActQuant(bits=2),
    AmpnConfig(budget=Budget(limit=2)),
    BitAllocation(bits={"transformer_blocks.0.qkv": 2}),
    CalibrationConfig(),
    DataConfig(),
    DiffusionConfig(),
    EvalConfig(),
    FeatureConfig(),
    LossConfig(),
    LowRank(),
    ModelConfig(),
    PrecisionMap.parse(variant("robuq_uniform", 2).model_dump(mode="json")),
    QuantSpec(act=ActQuant(bits=2), weight=WeightQuant()),
    RunConfig(variant="robuq_uniform", precision=variant("robuq_uniform", 2)),
    SampleConfig(),
    SearchConfig(),
    SensitivityConfig(),
    TrainConfig(),
    Transform(),
    WeightQuant(),
)


def leaves(data: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of every setting, parts included."""
    names = []
    for name, value in data.items():
        names += [f"{prefix}{name}", *(leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
    return names


SETTINGS = sorted(
    {
        *leaves(CONFIGS[13].model_dump(mode="json")),
        "variant",
        "act_bits",
        "block_linears.act.bits",
        "block_linears.low_rank",
    }
)


def yaml_of(content: Any) -> bytes:
    """JSON is YAML; numbers that JSON does not have are written as YAML has them."""
    text = json.dumps(content, allow_nan=True)
    return text.replace("NaN", ".nan").replace("Infinity", ".inf").encode()


# --- documents ------------------------------------------------------------------------------------------------


def check_document(content: bytes, folder: Path) -> str:
    """Bytes as the plan's file."""
    (folder / "plan.yaml").write_bytes(content)
    return check_command(["plan", "plan.yaml", "--json", "--output", "out"], folder)


def check_plan(content: Any, folder: Path) -> str:
    (folder / "plan.yaml").write_bytes(yaml_of(content))
    end = check_command(["plan", "plan.yaml", "--json", "--output", "out"], folder)
    return end if end == REFUSED else check_command(["status", "plan.yaml", "--output", "out"], folder)


def check_search(content: Any, folder: Path) -> str:
    (folder / "search.yaml").write_bytes(yaml_of(content))
    return check_command(["plan", "search.yaml", "--json", "--output", "out"], folder)


# --- settings -------------------------------------------------------------------------------------------------


@st.composite
def settings_texts(draw: st.DrawFn) -> list[str]:
    names = st.sampled_from(SETTINGS) | st.sampled_from(["seeds", "pretrain_seeds", "grid.variant", "name", "zip.x"])
    odd = texts() | st.sampled_from(
        ["train.", ".steps", "train..steps", "train.steps.x", "seed", "precision.qkv.act.x"]
    )
    written = scalars().map(_written) | values().map(lambda value: yaml_of(value).decode())
    several = st.lists(numbers().map(_written), min_size=2, max_size=3).map(",".join)
    return [
        f"{draw(names | names | odd)}{draw(st.sampled_from(['=', '=', '=', '=', '', '==']))}{draw(written | several)}"
        for _ in range(draw(st.integers(1, 2)))
    ]


def _written(value: Any) -> str:
    """As a person types it."""
    return value if isinstance(value, str) else yaml_of(value).decode()


def check_settings(case: tuple[str, list[str]], folder: Path) -> str:
    file, texts = case
    words = [word for text in texts for word in ("--set", text)]
    return check_command(["plan", file, "--json", "--output", "out", *words], folder)


# --- classes --------------------------------------------------------------------------------------------------


@st.composite
def configs(draw: st.DrawFn) -> tuple[type[Config], Any]:
    config = draw(st.sampled_from(CONFIGS))
    return type(config), draw(mutated(config.model_dump(mode="json")))


def check_config(case: tuple[type[Config], Any], folder: Path) -> str:
    """What is accepted comes back from its own JSON, equal, and has a digest and finite numbers alone."""
    kind, content = case
    end, value = check_call(lambda: kind.parse(content))
    if end == ACCEPTED:
        text = value.to_json()
        assert kind.parse(json.loads(text)) == value
        assert value.digest() == kind.parse(json.loads(text)).digest()
        if isinstance(value, RunConfig):
            assert len(value.key()) == 16
            assert value.label.startswith("W")
        assert all(math.isfinite(number) for number in _floats(json.loads(text)))
    return end


def _floats(data: Any) -> list[float]:
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    own = [data] if isinstance(data, float) else []
    return own + [number for part in inner for number in _floats(part)]


# --- command lines --------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[str, ...]] = {
    "plan": ("--output", "--set", "--workers", "--json"),
    "status": ("--output", "--set", "--json"),
    "sweep": ("--set", "--executor", "--workers", "--cpus-per-run", "--gpus-per-run", "--device"),
    "report": ("--set", "--tracking-uri", "--html"),
    "train": ("--act-bits", "--preset", "--seed", "--bits", "--set", "--device"),
    "evaluate": ("--set", "--device", "--json"),
    "sample": ("--num-images", "--columns", "--seed", "--steps", "--guidance", "--device"),
    "reproduce": ("--device",),
    "sensitivity": ("--act-bits", "--preset", "--seed", "--measure", "--set", "--device", "--json"),
    "allocate": ("--budget", "--weights", "--allocator", "--measure", "--act-bits", "--preset", "--seed", "--set"),
    "search": ("--set", "--executor", "--workers", "--device"),
    "paper": ("--check", "--set"),
    "table": ("--set",),
    "figure": ("--set",),
    "provenance": ("--row", "--column"),
    "doctor": ("--fix", "--json", "--storage"),
    "variants": (),
    "dashboard": ("--port", "--plan"),
    "\x1b[2J": (),
    "swep": (),
}
FLAGS = ("--json", "--html", "--check", "--fix")
POSITIONAL = {"plan", "status", "sweep", "report", "train", "evaluate", "sample", "reproduce", "search", "provenance"}
CHANGELESS = ("plan", "status")  # these may well succeed; every other verb is given an output that is a file


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    verb = draw(st.sampled_from(list(OPTIONS)))
    words = [verb]
    plain = texts().filter(lambda text: "\x00" not in text)  # the system takes no null byte in a word
    targets = st.sampled_from(["smoke", "minmax", "baseline/0", "searches/smoke"]) | plain
    if verb in POSITIONAL or draw(st.booleans()):
        words.append(draw(targets))
    for option in draw(st.lists(st.sampled_from(OPTIONS[verb] or ("--x",)), max_size=3)):
        words += [option] if option in FLAGS else [option, draw(numbers().map(_written) | plain)]
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(plain))
    return words


def check_command_line(words: list[str], folder: Path) -> str:
    """Verbs that write get an output folder that is a file: whatever else is wrong, they may not succeed."""
    if words[0] == "dashboard":
        words = [*words, "--port", "0"]  # a port that there is not: it would serve until it is ended
    if words[0] in CHANGELESS:
        return check_command(words if "--output" in words else [*words, "--output", "out"], folder)
    (folder / "taken").write_text("mine")
    ended = command([*words, "--output", "taken"])
    assert (folder / "taken").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["taken"]
    if ended.code == 0:
        assert words[0] in ("variants", "paper", "table", "figure") or "--help" in words, words
        return ACCEPTED
    if words[0] == "doctor" and ended.code == 1:
        return REFUSED
    check_refusal(ended)
    return REFUSED


ALL = (
    Surface("plan files: YAML", documents(), check_document, 0.7),
    Surface("plan files: values", mutated(PLAN, 2), check_plan, 0.5),
    Surface("search files: values", mutated(SEARCH, 2), check_search),
    Surface(
        "--set", st.tuples(st.sampled_from(["smoke", "smoke", "searches/smoke"]), settings_texts()), check_settings
    ),
    Surface("configuration classes, quantization specs", configs(), check_config, 4),
    Surface("command lines of every verb", command_lines(), check_command_line),
)
