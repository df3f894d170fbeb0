"""Files made once and then damaged: what the surfaces of files share."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import damaged, mutated
from hypothesis import strategies as st

Files = dict[str, bytes]


def written(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def read(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def made(make: Callable[[Path], Any]) -> Files:
    """What `make` writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return read(Path(folder))


@st.composite
def one_damaged(draw: st.DrawFn, make: Callable[[], Files]) -> Files:
    """The files with one of them damaged, or gone; JSON also by other values."""
    files = dict(make())
    name = draw(st.sampled_from(sorted(files)))
    if draw(st.integers(0, 9)) == 0:
        del files[name]
    elif name.endswith((".json", ".sent")) and draw(st.booleans()):
        files[name] = json.dumps(draw(mutated(json.loads(files[name])))).encode()
    else:
        files[name] = draw(
            damaged(files[name]) | st.sampled_from([b"[" * 100_000, b"NaN", b'{"a":' * 5000, b"\xff\xfe{}"])
        )
    return files
