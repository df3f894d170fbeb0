"""Small files and short commands that ask for a lot: each is refused before the memory is taken."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from file_makers import written
from surfaces_data import PICTURES, npz_claiming
from surfaces_files import TINY, quantized

from experiments.plan import build_plan, load_plan
from experiments.search_file import build_search
from robuq.ampn.bits_file import read_bits
from robuq.config import ConfigError, DataConfig, ModelConfig
from robuq.data.load import load_data
from robuq.models import build_dit, save_dit
from robuq.quant.storage import load_quantized

ROOM = 64 << 20  # bytes
MANY = list(range(100))


def ablation(folder: Path) -> object:
    """10,000 points, each in 2^12 combinations."""
    parts = {f"c{i}": {"on": {}, "off": {}} for i in range(12)}
    grid = {"variant": ["minmax"], "train.steps": MANY, "train.log_every": MANY}
    return build_plan({"name": "x", "preset": "nano", "grid": grid, "ablate": {"mode": "full", "components": parts}})


def includes(folder: Path) -> object:
    entry = {"variant": "minmax", "grid": {"train.steps": MANY, "train.log_every": MANY}}
    return build_plan({"name": "x", "preset": "nano", "include": [entry] * 1000})


def seeds(folder: Path) -> object:
    return build_plan({"name": "x", "preset": "nano", "base": {"variant": "minmax"}, "seeds": [0] * 200_000})


def layers(folder: Path) -> object:
    return build_plan({"name": "x", "preset": "nano", "base": {"variant": "minmax", "model.num_layers": 10**9}})


def tokens(folder: Path) -> object:
    sizes = {"model.image_size": 8192, "data.image_size": 8192, "model.patch_size": 1, "model.width": 65536}
    return build_plan({"name": "x", "preset": "nano", "base": {"variant": "minmax", **sizes}})


def rungs(folder: Path) -> object:
    return build_search({"name": "x", "preset": "nano", "search": {"rungs": [{"steps": i} for i in range(100_000)]}})


def long_plan(folder: Path) -> object:
    with (folder / "plan.yaml").open("wb") as file:
        file.truncate(1 << 33)  # takes no room on the disk
    return load_plan(folder / "plan.yaml")


def long_json(folder: Path) -> object:
    with (folder / "bits.json").open("wb") as file:
        file.truncate(1 << 33)
    return read_bits(folder / "bits.json")


def deep_json(folder: Path) -> object:
    (folder / "bits.json").write_text("[" * 1_000_000)
    return read_bits(folder / "bits.json")


def packed_idx(folder: Path) -> object:
    packer, zeros = zlib.compressobj(9, wbits=31), bytes(1 << 20)
    content = packer.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 28, 28))
    content += b"".join(packer.compress(zeros) for _ in range(512)) + packer.flush()
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (folder / name).write_bytes(content)
    for name in ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + bytes(range(4))))
    return load_data(DataConfig(name="fashion_mnist", path=str(folder), image_size=28))


def claimed_latents(folder: Path) -> object:
    (folder / "latents.npz").write_bytes(npz_claiming("(1000000000, 4, 4, 4)"))
    return load_data(DataConfig(name="latents", path=str(folder / "latents.npz"), image_size=4))


def picture(name: str) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        files = {f"{of}/{index}.png": PICTURES["good"] for of in "ab" for index in range(2)}
        written({**files, "a/2.png": PICTURES[name]}, folder)
        return load_data(DataConfig(name="image_folder", path=str(folder), image_size=256))

    load.__name__ = name
    return load


def claimed_network(folder: Path) -> object:
    """A few kilobytes of weights, and a description of a network that no machine holds."""
    written(quantized(), folder)
    meta = json.loads((folder / "quantized.json").read_text())
    sizes: dict[str, Any] = {"width": 65536, "num_layers": 1000}
    (folder / "quantized.json").write_text(json.dumps({**meta, "model": {**meta["model"], **sizes}}))
    return load_quantized(folder)


def claimed_pretrained(folder: Path) -> object:
    save_dit(build_dit(TINY, 0), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sample_size": 8192, "attention_head_dim": 65536}))
    return build_dit(ModelConfig(pretrained=str(folder)), 0)


BOMBS = (
    ablation, includes, seeds, layers, tokens, rungs, long_plan, long_json, deep_json, packed_idx, claimed_latents,
    picture("bomb"), picture("less of a bomb"), picture("thin"), claimed_network, claimed_pretrained,
)  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_little_input_takes_little_memory(bomb: Callable[[Path], object], tmp_path: Path) -> None:
    load_quantized(written(quantized(), tmp_path / "whole"))  # what is imported late is no part of it
    (folder := tmp_path / "bomb").mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            bomb(folder)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < ROOM
    assert "\n" not in str(caught.value)
    if bomb.__name__ in PICTURES:  # what Pillow takes is not counted: it has to be refused by its size
        assert "67108864 pixels" in str(caught.value)


def test_a_picture_that_would_start_a_program_is_none(tmp_path: Path) -> None:
    """Pillow hands PostScript to an interpreter, whatever the file is called."""
    files = {f"{of}/{index}.png": PICTURES["good"] for of in "ab" for index in range(2)}
    written({**files, "a/2.png": PICTURES["postscript"]}, tmp_path)
    with pytest.raises(ConfigError, match="as PNG or JPEG"):
        load_data(DataConfig(name="image_folder", path=str(tmp_path)))
