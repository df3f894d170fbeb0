import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robuq.config import ConfigError, DataConfig
from robuq.data.files import FASHION_FILES
from robuq.data.fingerprint import data_fingerprint


def picture_folder(root: Path) -> DataConfig:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(name.encode())
    return DataConfig(name="image_folder", path=str(root))


def test_it_is_free_of_torch_and_cheap():
    code = "import sys, robuq.data.fingerprint; print({'torch', 'sklearn', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_digits_have_a_stable_fingerprint():
    assert data_fingerprint(DataConfig()) == data_fingerprint(DataConfig())
    assert len(data_fingerprint(DataConfig())) == 16
    int(data_fingerprint(DataConfig()), 16)


@pytest.mark.parametrize(
    "change", [{"held_out": 0.3}, {"validation": 0.2}, {"split_seed": 1}, {"limit": 100}, {"image_size": 4}]
)
def test_settings_count(change):
    assert data_fingerprint(DataConfig(**change)) != data_fingerprint(DataConfig())


def test_the_same_files_elsewhere_are_the_same(tmp_path):
    one, other = (data_fingerprint(picture_folder(tmp_path / name)) for name in ("one", "other"))
    assert one == other


def test_content_and_class_names_count(tmp_path):
    config = picture_folder(tmp_path / "data")
    before = data_fingerprint(config)
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"longer")
    changed = data_fingerprint(config)
    (tmp_path / "data" / "a").rename(tmp_path / "data" / "c")
    assert len({before, changed, data_fingerprint(config)}) == 3


def test_files_are_read_again_when_they_change(tmp_path):
    """Same size, other time of change."""
    file = tmp_path / "latents.npz"
    config = DataConfig(name="latents", path=str(file))
    fingerprints = []
    for index, content in enumerate((b"abc", b"abd")):
        file.write_bytes(content)
        os.utime(file, ns=(index, index))
        fingerprints.append(data_fingerprint(config))
    assert len(set(fingerprints)) == 2


def test_fashion_mnist_ignores_the_fraction_it_does_not_use(tmp_path):
    for index, name in enumerate(FASHION_FILES):
        (tmp_path / f"{name}.gz").write_bytes(np.arange(index + 1).tobytes())
    config = DataConfig(name="fashion_mnist", path=str(tmp_path), image_size=28)
    assert data_fingerprint(config) == data_fingerprint(config.updated(held_out=0.5))
    assert data_fingerprint(config) != data_fingerprint(config.updated(image_size=14))
    assert data_fingerprint(config) != data_fingerprint(config.updated(validation=0.2))


@pytest.mark.parametrize("name", ["fashion_mnist", "image_folder", "latents"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(ConfigError, match="nowhere"):
        data_fingerprint(DataConfig(name=name, path=str(tmp_path / "nowhere")))
