import gzip
import struct

import numpy as np
import pytest

from robuq.config import ConfigError
from robuq.data.idx import read_idx


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("encode", [lambda content: content, gzip.compress])
@pytest.mark.parametrize("array", [ARRAY, ARRAY.ravel(), ARRAY[:0]])
def test_arrays_come_back(tmp_path, encode, array):
    file = tmp_path / "values"
    file.write_bytes(encode(idx(array)))
    assert np.array_equal(read_idx(file), array)
    assert read_idx(file).shape == array.shape


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file.*nothing"),
        (b"\x00\x00\x0d\x01", "no IDX file.*00000d01"),
        (idx(ARRAY)[:9], "inside its header"),
        (idx(ARRAY)[:-1], "holds 23 values"),
        (idx(ARRAY) + b"\0", "holds more than 24 values"),
        (gzip.compress(idx(ARRAY), mtime=0)[:-9], "cannot read"),
        (b"\x1f\x8b" + b"x" * 30, "cannot read"),
    ],
    ids=["empty", "other type", "short header", "short", "long", "short gzip", "no gzip"],
)
def test_damage_is_named_in_one_line(tmp_path, content, message):
    file = tmp_path / "values"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_idx(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing-here"):
        read_idx(tmp_path / "nothing-here")
