import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from robuq.config import ConfigError, DataConfig, ModelConfig
from robuq.data.files import FASHION_FILES, FASHION_FOLDER
from robuq.data.load import ImageData, check_model_fits, load_data
from robuq.data.pictures import centre_crop

PARTS = ("train", "validation", "held_out")
needs_fashion = pytest.mark.skipif(not FASHION_FOLDER.is_dir(), reason="package dataset-fashion-mnist is missing")


def all_images(data: ImageData) -> torch.Tensor:
    return torch.cat([getattr(data, f"{part}_images") for part in PARTS])


def write_fashion(folder: Path, train: int = 40, test: int = 20) -> None:
    generator = np.random.default_rng(0)
    for name, count in zip(FASHION_FILES, (train, train, test, test), strict=True):
        labels = "labels" in name
        shape = (count,) if labels else (count, 28, 28)
        values = np.arange(count) % 10 if labels else generator.integers(0, 256, shape)
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_pictures(root: Path, mode: str = "RGB", classes: tuple[str, ...] = ("cat", "dog"), count: int = 4) -> None:
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir()
        for index in range(count):
            pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{index}.png")


def folder_config(root: Path, size: int = 8) -> DataConfig:
    return DataConfig(name="image_folder", path=str(root), image_size=size)


# --- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_range():
    data = load_data(DataConfig())
    assert data.image_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    images = all_images(data)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    ours = sorted(map(tuple, ((images + 1) * 8).flatten(1).tolist()))
    assert ours == sorted(map(tuple, load_digits().data.tolist()))


def test_digits_keep_their_labels():
    digits = load_digits()
    label_of = {tuple(image): label for image, label in zip(digits.data.tolist(), digits.target, strict=True)}
    data = load_data(DataConfig(limit=200))
    assert len(data.train_images) == len(data.train_labels) == 200
    for part in PARTS:
        pixels = ((getattr(data, f"{part}_images") + 1) * 8).flatten(1).tolist()
        assert [label_of[tuple(image)] for image in pixels] == getattr(data, f"{part}_labels").tolist()


def test_held_out_digits_are_a_quarter_of_each_class_and_validation_a_tenth_of_the_rest():
    data = load_data(DataConfig())
    rest = torch.cat([data.train_labels, data.validation_labels]).bincount()
    total = rest + data.held_out_labels.bincount()
    assert (data.held_out_labels.bincount() - total * 0.25).abs().max() <= 0.5
    assert (data.validation_labels.bincount() - rest * 0.1).abs().max() <= 0.5


def test_without_validation_there_are_no_such_images():
    data = load_data(DataConfig(validation=0))
    assert data.validation_images.shape == (0, 1, 8, 8)
    assert (len(data.validation_labels), len(data.train_images)) == (0, 1347)


def test_smaller_digits_average_areas():
    whole, half = (load_data(DataConfig(image_size=size)) for size in (8, 4))
    blocks = whole.train_images.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    assert torch.allclose(half.train_images, blocks, atol=1e-6)
    with pytest.raises(ConfigError, match="16 is above the 8 pixels of digits"):
        load_data(DataConfig(image_size=16))


# --- Fashion-MNIST --------------------------------------------------------------------------------------------


@needs_fashion
def test_fashion_mnist_is_whole():
    data = load_data(DataConfig(name="fashion_mnist", image_size=28, validation=0))
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.held_out_labels.bincount().tolist() == [1000] * 10
    assert data.image_shape == (1, 28, 28)
    assert (data.train_images.min(), data.train_images.max()) == (-1, 1)
    assert data.classes[9] == "ankle boot"
    assert data.train_labels[:5].tolist() == [9, 0, 0, 3, 0]  # as listed with the data set


@pytest.mark.parametrize("size", [14, 16, 28])
def test_fashion_files_of_ones_own(tmp_path, size):
    write_fashion(tmp_path)
    data = load_data(DataConfig(name="fashion_mnist", path=str(tmp_path), image_size=size, limit=30))
    assert data.train_images.shape == (30, 1, size, size)
    assert data.held_out_images.shape == (20, 1, size, size)
    assert data.train_labels.bincount().tolist() == [3] * 10
    assert data.validation_labels.bincount().tolist() == [1] * 10  # .4 of each class's four would be none
    assert data.held_out_labels.tolist() == [*range(10)] * 2
    whole = load_data(DataConfig(name="fashion_mnist", path=str(tmp_path), image_size=size, validation=0))
    ours, theirs = (set(map(bytes, images.numpy())) for images in (all_images(data), all_images(whole)))
    assert ours == theirs


def test_missing_fashion_files_name_the_package(tmp_path):
    with pytest.raises(ConfigError, match="apt-get install dataset-fashion-mnist") as error:
        load_data(DataConfig(name="fashion_mnist", path=str(tmp_path), image_size=28))
    assert "\n" not in str(error.value)


def test_fashion_files_that_do_not_match_are_refused(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / f"{FASHION_FILES[0]}.gz").write_bytes((tmp_path / f"{FASHION_FILES[2]}.gz").read_bytes())
    with pytest.raises(ConfigError, match="not Fashion-MNIST"):
        load_data(DataConfig(name="fashion_mnist", path=str(tmp_path), image_size=28))


# --- image folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_folders_of_any_mode(tmp_path, mode, channels):
    write_pictures(tmp_path, mode)
    data = load_data(folder_config(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train_images.shape == (4, channels, 8, 8)
    assert data.validation_labels.tolist() == [0, 1]
    assert data.held_out_labels.tolist() == [0, 1]
    assert data.train_images.abs().max() <= 1


def test_one_coloured_file_makes_all_rgb(tmp_path):
    write_pictures(tmp_path, "L")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "cat" / "red.JPEG")
    assert load_data(folder_config(tmp_path)).image_shape == (3, 8, 8)


def test_the_crop_is_the_middle():
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, 16:32] = 200
    assert (np.asarray(centre_crop(Image.fromarray(pixels), 16)) == 200).all()
    cropped = np.asarray(centre_crop(Image.fromarray(np.ascontiguousarray(pixels.T)), 4))
    assert cropped.shape == (4, 4)
    assert (cropped[1:-1] == 200).all()  # only the bicubic kernel's edge sees the dark parts


@pytest.mark.parametrize("shape", [(8, 8), (9, 17), (7, 5), (1, 1), (100, 33)])
def test_every_shape_gives_the_wanted_size(shape):
    assert centre_crop(Image.new("L", shape, 90), 8).getcolors() == [(64, 90)]


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_data(folder_config(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no images under"):
        load_data(folder_config(tmp_path))
    write_pictures(tmp_path, classes=("cat",))
    with pytest.raises(ConfigError, match="images of 1 class"):
        load_data(folder_config(tmp_path))
    (tmp_path / "dog").mkdir()
    with pytest.raises(ConfigError, match="dog holds no images"):
        load_data(folder_config(tmp_path))


@pytest.mark.parametrize("cut", [0, 10, 300])
def test_damaged_pictures_are_named(tmp_path, cut):
    write_pictures(tmp_path)
    victim = tmp_path / "dog" / "2.png"
    victim.write_bytes(victim.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=r"dog/2\.png.*replace or remove") as error:
        load_data(folder_config(tmp_path))
    assert "\n" not in str(error.value)


def test_sixteen_bit_pictures_are_refused(tmp_path):
    write_pictures(tmp_path, "L")
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(ConfigError, match="8 bits"):
        load_data(folder_config(tmp_path))


# --- latents --------------------------------------------------------------------------------------------------


def latents(folder: Path, **changes: np.ndarray) -> DataConfig:
    generator = np.random.default_rng(0)
    arrays = {"latents": generator.normal(size=(12, 4, 8, 8)), "labels": np.arange(12) % 3, **changes}
    np.savez(folder / "latents.npz", **{name: value for name, value in arrays.items() if value is not None})
    return DataConfig(name="latents", path=str(folder / "latents.npz"))


def test_latents_are_kept_as_they_are(tmp_path):
    data = load_data(latents(tmp_path))
    assert data.image_shape == (4, 8, 8)
    assert data.num_classes == 3
    expected = np.random.default_rng(0).normal(size=(12, 4, 8, 8)).astype(np.float32)
    images = all_images(data).numpy()
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(expected[:, 0, 0, 0].tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "labels.*it needs"),
        ({"labels": np.arange(11)}, "12 class numbers"),
        ({"labels": np.arange(12) - 1}, "class numbers from 0"),
        ({"labels": np.zeros(12, np.int64)}, "images of 1 class"),
        ({"labels": np.full(12, 1)}, "images of 1 class"),
        ({"labels": np.array([{}] * 12)}, "plain arrays"),
        ({"latents": np.zeros((12, 4, 16, 16))}, "expected \\(N, C, 8, 8\\)"),
        ({"latents": np.zeros((0, 4, 8, 8))}, "expected"),
        ({"latents": np.zeros((12, 4, 8, 8), np.int64)}, "floating-point"),
        ({"latents": np.full((12, 4, 8, 8), np.nan)}, "finite"),
    ],
)
def test_unusable_latents_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_data(latents(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"text"])
def test_damaged_latents_are_refused(tmp_path, content):
    config = latents(tmp_path)
    Path(config.path or "").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read"):
        load_data(config)


def test_missing_latents_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_data(DataConfig(name="latents", path=str(tmp_path / "none.npz")))


# --- model and data -------------------------------------------------------------------------------------------


def test_models_must_fit():
    data = load_data(DataConfig())
    check_model_fits(ModelConfig(), data)
    check_model_fits(ModelConfig(num_classes=0), data)
    for wrong, message in (
        ({"image_size": 4}, "image_size is 4, the images have 8"),
        ({"in_channels": 3}, "in_channels is 3, the images have 1"),
        ({"num_classes": 7}, "num_classes is 7, the data have 10"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_model_fits(ModelConfig().updated(**wrong), data)
