"""Surfaces of files that may come from elsewhere or be damaged: networks, checkpoints, bits, records, manifests."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contract import ACCEPTED, REFUSED, check_call, check_command, check_refusal, command
from file_makers import Files, made, one_damaged, read, written
from hostile import NAMES, damaged, mutated, texts, values
from hypothesis import strategies as st
from safetensors.torch import load, save
from surfaces import Surface

from experiments.output import Output
from experiments.plan import load_plan, single_run
from robuq.ampn.bits_file import read_bits
from robuq.ampn.table import SensitivityTable
from robuq.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from robuq.config import FeatureConfig, ModelConfig, resolve_specs
from robuq.data.fingerprint import data_fingerprint
from robuq.metrics.classifier import build_classifier, load_classifier, save_classifier
from robuq.models import build_dit, load_dit, save_dit
from robuq.quant.storage import load_quantized, save_quantized
from robuq.quant.surgery import quantize_
from robuq.record.run_record import RunRecord
from robuq.stages import StageStore, stages_of
from robuq.variants import variant

TINY = ModelConfig(width=8, num_layers=1, num_heads=1, num_classes=2)


# --- networks -------------------------------------------------------------------------------------------------


@functools.cache
def network() -> Files:
    return made(lambda folder: save_dit(build_dit(TINY, 0), folder))


@functools.cache
def quantized() -> Files:
    def make(folder: Path) -> None:
        model, specs = build_dit(TINY, 0), resolve_specs(variant("robuq_uniform", 2), TINY.num_layers)
        quantize_(model, specs, 0)
        save_quantized(model, TINY, specs, 0, folder)

    return made(make)


@functools.cache
def classifier() -> Files:
    config = FeatureConfig(width=4, channels=4)
    return made(
        lambda folder: save_classifier(build_classifier((1, 8, 8), 2, config), folder / "classifier.safetensors")
    )


@st.composite
def weights(draw: st.DrawFn, make: Callable[[], Files]) -> Files:
    """Damaged files, or whole ones whose tensors are not what they should be."""
    if draw(st.booleans()):
        return draw(one_damaged(make))
    files = dict(make())
    file = next(name for name in files if name.endswith(".safetensors"))
    tensors = load(files[file])
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.sampled_from(["shape", "dtype", "remove", "rename", "add", "scalar", "complex"]))
    changed = {
        "shape": {name: torch.zeros(3, 5)},
        "dtype": {name: tensors[name].to(draw(st.sampled_from([torch.int8, torch.float16, torch.bool, torch.int64])))},
        "remove": {},
        "rename": {f"{name}x": tensors[name]},
        "add": {draw(texts()).encode("utf-8", "replace").decode() or "x": torch.zeros(2), name: tensors[name]},
        "scalar": {name: torch.tensor(1.0)},
        "complex": {name: torch.zeros(tensors[name].shape, dtype=torch.complex64)},
    }[how]
    rest = {key: value for key, value in tensors.items() if key != name}
    return {**files, file: save({**rest, **changed})}


@st.composite
def networks(draw: st.DrawFn) -> Files:
    files = draw(weights(network))
    if draw(st.integers(0, 3)) == 0:
        shard = {
            "weight_map": draw(
                st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(NAMES) | values(), max_size=2)
            )
        }
        content = shard if draw(st.booleans()) else draw(mutated(shard))
        files["diffusion_pytorch_model.safetensors.index.json"] = json.dumps(content).encode()
    if draw(st.integers(0, 5)) == 0:
        files.pop("diffusion_pytorch_model.safetensors", None)
        stream = io.BytesIO()
        torch.save(draw(st.sampled_from([{"a": 1}, [1], {"a": torch.zeros(2)}, os.system])), stream)
        files["diffusion_pytorch_model.bin"] = draw(st.just(stream.getvalue()) | damaged(stream.getvalue()))
    return files


def check_network(files: Files, folder: Path) -> str:
    """As `--set model.pretrained=DIR` has it, and as a library has it."""
    written(files, folder / "in" / "network")
    end, model = check_call(lambda: build_dit(TINY.updated(pretrained=str(folder / "in" / "network")), 0))
    if end == ACCEPTED:
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    check_call(lambda: load_dit(folder / "in" / "network"), ValueError, FileNotFoundError)
    return end


def check_quantized(files: Files, folder: Path) -> str:
    return check_call(lambda: load_quantized(written(files, folder)))[0]


def check_classifier(files: Files, folder: Path) -> str:
    return check_call(lambda: load_classifier(written(files, folder) / "classifier.safetensors"))[0]


@functools.cache
def checkpoints() -> Files:
    def make(folder: Path) -> None:
        for step in (1, 2):
            save_checkpoint(folder, Checkpoint(step, {"w": torch.full((2,), float(step))}, {"step": step}))

    return made(make)


def check_checkpoints(files: Files, folder: Path) -> str:
    """Damage is never an error here: an older checkpoint is used, or none; never one that was not written."""
    found = latest_checkpoint(written(files, folder))
    assert found is None or bool((found.tensors["w"] == float(found.step)).all())
    return ACCEPTED if found is not None and found.step == 2 else REFUSED


# --- what is written beside -----------------------------------------------------------------------------------

BITS = {"bits": {"transformer_blocks.0.qkv": 2, "transformer_blocks.1.fc2": 3}}
TABLE = {
    "decisions": ["transformer_blocks.0.qkv"],
    "candidates": [1, 2],
    "reference": 2,
    "warm_up_steps": 0,
    "num_images": 2,
    "base_loss": 0.1,
    **{name: [[0.2, 0.0]] for name in ("loss", "loss_se", "output_error", "second_order")},
    "loss_halves": [[[0.2, 0.0]], [[0.2, 0.0]]],
    "seconds": {"loss": 1.0},
}


def json_files(content: Any) -> st.SearchStrategy[bytes]:
    text = mutated(content).map(lambda value: json.dumps(value).encode())
    return (
        text | damaged(json.dumps(content).encode()) | st.sampled_from([b"[" * 200_000, b"1" * 5000, b"\xef\xbb\xbf{}"])
    )


def check_bits(content: bytes, folder: Path) -> str:
    """The file itself, and the command that takes it, whose output is a file: it trains nothing."""
    (folder / "bits.json").write_bytes(content)
    end, _ = check_call(lambda: read_bits(folder / "bits.json"))
    (folder / "taken").write_text("mine")
    ended = command(["train", "robuq_uniform", "--preset", "nano", "--bits", "bits.json", "--output", "taken"])
    check_refusal(ended)
    assert (folder / "taken").read_text() == "mine"
    return end


def check_table(content: bytes, folder: Path) -> str:
    (folder / "sensitivity.json").write_bytes(content)
    return check_call(lambda: SensitivityTable.load(folder / "sensitivity.json"))[0]


@functools.cache
def recorded() -> Files:
    """An output folder with a record, the trace of its having been sent, a finished stage, and one that failed."""

    def make(folder: Path) -> None:
        plan = load_plan("smoke")
        run = plan.runs[0]
        stages = stages_of(run, data_fingerprint(run.data))
        record = RunRecord(
            plan=plan.name,
            key=run.key(),
            variant=run.variant,
            label=run.label,
            act_bits=None,
            seed=run.seed,
            pretrain_seed=run.pretrain_seed,
            status="finished",
            protocol="x",
            dataset="digits",
            config=run.model_dump(mode="json"),
            stages={stage.kind: stage.key for stage in stages},
            metrics={"held_out_loss": 1.0},
        )
        output = Output(folder)
        output.save(record)
        (folder / "runs" / plan.name / f"{record.key}.sent").write_text('{"server": "digest"}')
        store = StageStore(folder / "stages")
        store.open_work(stages[0])
        store.commit(stages[0], {"metrics": {}, "seconds": 1.0})
        store.open_work(stages[1])
        store.fail(stages[1], "diverged", "the loss is not finite")
        (store.work_folder(stages[1]) / "progress.json").write_text(
            '{"phase": "training", "steps": 5, "step": 2, "loss": 1.0}'
        )

    return made(make)


def check_recorded(files: Files, folder: Path) -> str:
    """Looking at a folder with a damaged file changes nothing and is refused well, or succeeds."""
    written(files, folder / "out")
    ends = [
        check_command(words, folder)
        for words in (["status", "smoke", "--json", "--output", "out"], ["plan", "smoke", "--json", "--output", "out"])
    ]
    before = read(folder)
    ended = command(["doctor", "--json", "--output", "out"])
    if ended.code in (0, 1):
        json.loads(ended.out)
        assert ended.err == ""
    else:
        check_refusal(ended)
    assert read(folder) == before
    run = single_run("full_precision", 2, "nano", 0, {})
    ended = command(["evaluate", f"{run.variant}/0", "--output", "out", "--set", "train.steps=1"])
    check_refusal(ended)
    return REFUSED if REFUSED in ends else ACCEPTED


MANIFEST = {
    "artefacts": {
        "components": {
            "id": "components",
            "from": "smoke",
            "cells": [{"row": "a", "columns": ["x"], "keys": ["k"]}],
        }
    },
    "runs": {
        "smoke": {
            "k": {
                "variant": "a",
                "label": "W1A1",
                "seed": 0,
                "pretrain_seed": 0,
                "protocol": "p",
                "git": {},
                "versions": {},
            }
        }
    },
}


def check_manifest(case: tuple[bytes, str], folder: Path) -> str:
    content, row = case
    written({"manifest.json": content, "components.csv": b"a,b\n"}, folder)
    words = ["provenance", "components.csv", "--output", "out", *(["--row", row] if row else [])]
    return check_command(words, folder)


ALL = (
    Surface("networks: diffusers' layout", networks(), check_network, 1),
    Surface("networks: quantized", weights(quantized), check_quantized, 1),
    Surface("feature classifiers", weights(classifier), check_classifier, 4),
    Surface("checkpoints", one_damaged(checkpoints), check_checkpoints, 4),
    Surface("bits.json", json_files(BITS), check_bits, 0.5),
    Surface("sensitivity.json", json_files(TABLE), check_table, 4),
    Surface("records, stages and what they say", one_damaged(recorded), check_recorded, 0.25),
    Surface(
        "the paper's manifest",
        st.tuples(json_files(MANIFEST), st.just("") | texts().filter(lambda t: "\x00" not in t)),
        check_manifest,
    ),
)
