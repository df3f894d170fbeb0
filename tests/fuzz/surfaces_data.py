"""Surfaces of data sets: digits' settings, folders of images, IDX files, cached latents."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import ACCEPTED, check_call
from file_makers import Files, one_damaged, written
from hostile import damaged, values
from hypothesis import strategies as st
from PIL import Image
from surfaces import Surface

from robuq.config import DataConfig
from robuq.data.fingerprint import data_fingerprint
from robuq.data.load import load_data


def check_data(config: DataConfig) -> str:
    """What is read can be trained on: every image finite, each part with the labels of its images."""
    end, data = check_call(lambda: (data_fingerprint(config), load_data(config))[1])
    if end == ACCEPTED:
        assert len(data.train_images) > 0
        assert len(data.held_out_images) > 0
        for part in ("train", "validation", "held_out"):
            images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
            assert images.dtype == torch.float32
            assert bool(images.isfinite().all())
            assert images.shape[2:] == (config.image_size, config.image_size)
            assert len(images) == len(labels)
            assert not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes
    return end


def png(shape: tuple[int, int], mode: str = "L", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, shape, 90).save(stream, format=kind)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A whole header, checksum and all, that promises more than there is."""
    header = b"IHDR" + struct.pack(">II", width, height) + png((1, 1))[24:29]
    return png((1, 1))[:12] + header + struct.pack(">I", zlib.crc32(header)) + png((1, 1))[33:]


PICTURES = {
    "good": png((9, 9)),
    "colour": png((8, 12), "RGB"),
    "jpeg": png((16, 9), "RGB", "JPEG"),
    "palette": png((8, 8), "P"),
    "alpha": png((8, 8), "RGBA"),
    "thin": png((1, 3000)),
    "one pixel": png((1, 1)),
    "deep": png((8, 8), "I;16"),
    "gif": png((8, 8), "P", "GIF"),
    "bmp": png((8, 8), "RGB", "BMP"),
    "tiff": png((8, 8), "L", "TIFF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\nshowpage\n%%EOF\n",
    "bomb": png_claiming(60_000, 60_000),
    "less of a bomb": png_claiming(9_000, 9_000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "text": b"no picture",
    "empty": b"",
}


@st.composite
def picture_folders(draw: st.DrawFn) -> dict[str, bytes]:
    classes = draw(
        st.lists(st.sampled_from(["cat", "dog", "é", "a b", ".hidden", "\udcff", "x" * 200]), max_size=3, unique=True)
    )
    files: dict[str, bytes] = {}
    for name in classes:
        for index in range(draw(st.integers(0, 3))):
            content = PICTURES["good"]
            if draw(st.integers(0, 3)) == 0:
                content = draw(st.sampled_from(sorted(PICTURES)).map(PICTURES.__getitem__) | damaged(content))
            suffix = draw(st.sampled_from([".png", ".png", ".JPG", ".txt", ""]))
            files[f"{name}/{index}{suffix}"] = content
    return files


def check_pictures(case: tuple[dict[str, bytes], dict[str, Any]], folder: Path) -> str:
    files, settings = case
    (folder / "data").mkdir()
    written(files, folder / "data")
    end, config = check_call(
        lambda: DataConfig.parse(
            {"name": "image_folder", "path": "data", "image_size": 8, "validation": 0.1, **settings}
        )
    )
    return check_data(config) if end == ACCEPTED else end


def idx(*shape: int, values: bytes | None = None) -> bytes:
    count = int(np.prod(shape, dtype=object))
    return (
        bytes([0, 0, 8, len(shape)])
        + struct.pack(f">{len(shape)}I", *shape)
        + (bytes(count) if values is None else values)
    )


@functools.cache
def fashion() -> Files:
    labels = bytes(range(4))
    return {
        "train-images-idx3-ubyte": idx(4, 28, 28),
        "train-labels-idx1-ubyte": idx(4, values=labels),
        "t10k-images-idx3-ubyte.gz": gzip.compress(idx(4, 28, 28), mtime=0),
        "t10k-labels-idx1-ubyte": idx(4, values=labels),
    }


ODD_IDX = (
    idx(0),
    idx(0, 28, 28),
    idx(4),
    idx(4, 28),
    idx(2, 2, 2, 2),
    idx(1, 28, 28),
    idx(4, 28, 27),
    idx(4, values=bytes([9, 10, 0, 1])),
    bytes([0, 0, 8, 0]),
    bytes([0, 0, 8, 255]),
    bytes([0, 0, 8, 100]) + struct.pack(">100I", *[1] * 100) + b"x",
    bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1),
    bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 0, 28),
    gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + bytes(50_000_000)),
    gzip.compress(idx(4, 28, 28)) * 2,
)


@st.composite
def fashion_folders(draw: st.DrawFn) -> Files:
    files = draw(one_damaged(fashion))
    if draw(st.booleans()):
        files = {**fashion(), draw(st.sampled_from(sorted(fashion()))): draw(st.sampled_from(ODD_IDX))}
    return files


def check_fashion(files: Files, folder: Path) -> str:
    written(files, folder)
    return check_data(DataConfig(name="fashion_mnist", path=str(folder), image_size=28))


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npz_claiming(shape: str, dtype: str = "<f4") -> bytes:
    """An archive whose header promises more than there is."""
    stream = io.BytesIO()
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("latents.npy", member)
        archive.writestr("labels.npy", member)
    return stream.getvalue()


LATENTS, LABELS = np.zeros((8, 2, 4, 4), np.float32), np.arange(8) % 2
ARRAYS: tuple[Any, ...] = (
    np.zeros((8, 2, 4, 4), np.float16),
    np.zeros((8, 2, 4, 4), ">f4"),
    np.zeros((8, 2, 4, 4), np.longdouble),
    np.full((8, 2, 4, 4), 1e300),
    np.full((8, 2, 4, 4), np.nan),
    np.zeros((8, 2, 4, 4), complex),
    np.zeros((8, 0, 4, 4)),
    np.zeros((8, 2, 4, 5)),
    np.zeros((0, 2, 4, 4)),
    np.zeros(8),
    np.array(1.0),
    np.zeros((8, 2, 4, 4), bool),
    np.asfortranarray(LATENTS + 1),
    np.array([None] * 8),
    np.array(["a"] * 8),
    np.zeros(8, "M8[s]"),
    np.zeros(8, [("a", "i4")]),
    np.zeros(8, np.int64),
    np.array([0, 2**40] * 4),
    np.array([0, 2**64 - 1] * 4, np.uint64),
    np.array([0, -1] * 4),
    np.arange(8),
    np.array([0, 1] * 4, ">i2"),
    np.array([0, 1] * 4, np.uint8),
    np.array([0.0, 1.0] * 4),
    np.zeros((8, 1), int),
)


@st.composite
def latent_files(draw: st.DrawFn) -> bytes:
    good = npz(latents=LATENTS, labels=LABELS)
    how = draw(st.integers(0, 3))
    if how == 0:
        return draw(damaged(good))
    if how == 1:
        shapes = [
            "(10**15,)",
            "(1000000000, 4, 4, 4)",
            "(8, 2, 4, 4)",
            "(-1, 2, 4, 4)",
            "(0,)",
            "()",
            "(True, 2)",
            "x",
            "(2**70,)",
        ]
        kinds = ["<f4", "|O", "|V8", "<f16", "nonsense", "|S1000000000"]
        return npz_claiming(draw(st.sampled_from(shapes)), draw(st.sampled_from(kinds)))
    if how == 2:
        return draw(st.sampled_from([b"", b"PK", b"\x93NUMPY", good * 2, npz(latents=LATENTS), npz(labels=LABELS)]))
    return npz(
        **{
            "latents": LATENTS,
            "labels": LABELS,
            draw(st.sampled_from(["latents", "labels"])): draw(st.sampled_from(ARRAYS)),
        }
    )


def check_latents(content: bytes, folder: Path) -> str:
    (folder / "latents.npz").write_bytes(content)
    return check_data(DataConfig(name="latents", path="latents.npz", image_size=4))


def check_digits(changes: dict[str, Any], folder: Path) -> str:
    end, config = check_call(lambda: DataConfig.parse({"name": "digits", **changes}))
    return check_data(config) if end == ACCEPTED else end


def digit_settings() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["limit", "held_out", "validation", "split_seed", "image_size", "path", "name"])
    near = (
        st.integers(0, 12) | st.floats(0, 1) | st.sampled_from([1797, 1e-9, 1 - 1e-9, 2**62, "latents", "image_folder"])
    )
    return st.dictionaries(names, near | values(), max_size=3)


ALL = (
    Surface("digits: settings", digit_settings(), check_digits, 4),
    Surface("image folders", st.tuples(picture_folders(), st.just({}) | digit_settings()), check_pictures, 4),
    Surface("IDX files", fashion_folders(), check_fashion, 4),
    Surface("cached latents", latent_files(), check_latents, 4),
)
