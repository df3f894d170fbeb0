from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robuq.record.artifact_files import bits_of, read_lines, tile_images


def test_tiles_keep_every_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    grid = tile_images(images, columns=3)
    assert grid.shape == (2 * 5 + 1, 3 * 4 + 1, 3)
    for i, image in enumerate(images):
        top, left = 1 + 5 * (i // 3), 1 + 4 * (i % 3)
        assert np.array_equal(grid[top : top + 4, left : left + 3], image)
    assert (grid[0] == 128).all()


def test_an_unfinished_last_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_lines(file) == [{"step": 1}, {"step": 2}]


def test_a_broken_line_within_is_named(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"history.jsonl:2: not a line of JSON: 'nonsense'"):
        read_lines(file)


def test_no_lines(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert read_lines(tmp_path / "empty.jsonl") == []


def test_full_precision_has_no_bits() -> None:
    assert bits_of({"variant": "full_precision"}, {}) == {}
    assert bits_of({}, {}) == {}
