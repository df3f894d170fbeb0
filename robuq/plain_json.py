"""JSON that somebody else may have written: bounded, and with one kind of error. Free of torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robuq.storage_fault import reading

MOST_BYTES = 256 << 20


def read_json(file: Path, most_bytes: int = MOST_BYTES) -> Any:
    """What the file holds.

    Raises:
        OSError: it cannot be read.
        StorageFault: the disk does not give it.
        ValueError: it is longer than that, no text, no JSON, or nested too deeply.
    """
    with reading(file), file.open("rb") as stream:
        if (size := os.fstat(stream.fileno()).st_size) > most_bytes:
            raise ValueError(f"it has {size} bytes, more than {most_bytes}")
        content = stream.read(size + 1)
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """Raises ValueError: no JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_mapping(file: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Raises as `read_json`, and ValueError: it holds something other than a mapping."""
    content = read_json(file, most_bytes)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, a mapping is needed")
    return content
