"""Rolling checkpoints: written whole or not at all, checked when read, the last two kept.

A checkpoint is two files, `checkpoint-<step>.safetensors` and `checkpoint-<step>.json`. The second is written last
and holds the first one's SHA-256 and its own: without it, or where they disagree, the checkpoint before it is used.
Nothing is pickled. Other files of work under way are sealed one by one (`save_sealed`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from robuq.plain_json import read_mapping
from robuq.stages import sha256
from robuq.storage_fault import reading

KEEP = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    step: int  # optimizer updates done
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]  # plain data


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, then delete all but the newest `KEEP`."""
    tensors_file = folder / f"checkpoint-{checkpoint.step:08d}.safetensors"
    partial = tensors_file.with_name(f"{tensors_file.name}.partial")
    save_file({name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}, partial)
    digest = sha256(partial)
    _replace(partial, tensors_file)
    seal = {"step": checkpoint.step, "sha256": digest, "values": checkpoint.values}
    partial.write_text(json.dumps({**seal, "seal": _digest(seal)}, sort_keys=True))
    _replace(partial, tensors_file.with_suffix(".json"))
    for old in _seals(folder)[KEEP:]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def latest_checkpoint(folder: Path, fits: Callable[[Checkpoint], bool] = lambda _: True) -> Checkpoint | None:
    """The newest intact checkpoint that `fits`, on the CPU; None where there is none.

    Raises:
        StorageFault: the disk does not give one. It may be whole, so that none before it is taken.
    """
    for seal in _seals(folder):
        checkpoint = _read(seal)
        if checkpoint is not None and fits(checkpoint):
            return checkpoint
        log.warning("%s is damaged: using the checkpoint before it", seal.with_suffix(".safetensors").name)
    return None


def _seals(folder: Path) -> list[Path]:
    """The JSON halves, newest first."""
    return sorted(folder.glob("checkpoint-????????.json"), reverse=True)


def _read(seal: Path) -> Checkpoint | None:
    tensors_file = seal.with_suffix(".safetensors")
    try:
        content = read_mapping(seal)
    except ValueError:
        return None
    if content.pop("seal", None) != _digest(content):
        return None
    if not tensors_file.is_file() or sha256(tensors_file) != content["sha256"]:
        return None
    return Checkpoint(content["step"], load_file(tensors_file), content["values"])


def save_sealed(file: Path, content: bytes) -> None:
    """The SHA-256 of the content (32 bytes), then the content."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(hashlib.sha256(content).digest() + content)
    _replace(partial, file)


def read_sealed(file: Path) -> bytes | None:
    """None where there is no such file, or where it is not as it was written."""
    with reading(file):
        sealed = file.read_bytes() if file.is_file() else b""
    if sealed and sealed[:32] == hashlib.sha256(sealed[32:]).digest():
        return sealed[32:]
    if file.is_file():
        log.warning("%s is damaged: made anew", file.name)
    return None


def _digest(seal: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(seal, sort_keys=True).encode()).hexdigest()


def _replace(source: Path, target: Path) -> None:
    """Rename once the bytes are on the disk, so that a power cut leaves the old or the new file."""
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(source, target)
