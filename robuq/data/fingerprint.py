"""The fingerprint of a data set: what is in it and how it is split. Free of torch.

Where the files lie does not matter, what they hold does: the same images elsewhere have the same fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from robuq.config import ConfigError, DataConfig
from robuq.data.files import fashion_mnist_files, image_files, latents_file
from robuq.storage_fault import reading

# Fields that cannot change what is loaded; Fashion-MNIST brings its own held-out files.
IRRELEVANT: dict[str, set[str]] = {"fashion_mnist": {"path", "held_out"}}


def data_fingerprint(config: DataConfig) -> str:
    """16 hex digits over the settings that matter and the content.

    File digests are kept for the life of the process by path, size and time of change.

    Raises:
        ConfigError: files are missing, or cannot be read.
    """
    settings = config.model_dump(mode="json", exclude=IRRELEVANT.get(config.name, {"path"}))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in _content(config):
        digest.update(b"\0" + os.fsencode(part))  # names of files may be no text
    return digest.hexdigest()[:16]


def _content(config: DataConfig) -> Iterator[str]:
    """Names and digests, in a fixed order."""
    if config.name == "digits":
        yield _digits_digest()
    elif config.name == "fashion_mnist":
        yield from map(_digest, fashion_mnist_files(config))
    elif config.name == "image_folder":
        for name, files in image_files(config).items():
            for file in files:
                yield f"{name}/{file.name}"
                yield _digest(file)
    else:
        yield _digest(latents_file(config))


def _digest(file: Path) -> str:
    try:
        with reading(file):
            state = file.stat()
            return _file_digest(file.resolve(), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"cannot read {file} ({error.strerror}): make it readable, or remove it") from None


@functools.cache
def _file_digest(file: Path, size: int, mtime_ns: int) -> str:
    """`size` and `mtime_ns` are part of the cache's key only."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.lru_cache(maxsize=1)
def _digits_digest() -> str:
    from sklearn.datasets import load_digits  # takes about a second: only where it is needed

    digits = load_digits()
    content = digits.images.astype("<f8").tobytes() + digits.target.astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()
