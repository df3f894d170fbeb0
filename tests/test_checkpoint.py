"""Checkpoints come back bit for bit, whole, and never damaged."""

from pathlib import Path

import pytest
import torch

from robuq.checkpoint import Checkpoint, latest_checkpoint, read_sealed, save_checkpoint, save_sealed


def some_tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "matrix": torch.randn(5, 3, generator=generator).t(),  # not contiguous
        "scalar": torch.tensor(float(step)),
        "codes": torch.randint(-1, 2, (4,), generator=generator).to(torch.int8),
        "double": torch.randn(2, generator=generator, dtype=torch.float64),
        "empty": torch.empty(0, 7),
    }


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, Checkpoint(step, some_tensors(step), {"loss": 0.1 * step}))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, 7)
    back = latest_checkpoint(tmp_path)
    assert back is not None
    assert (back.step, back.values) == (7, {"loss": 0.1 * 7})
    for name, tensor in some_tensors(7).items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


def test_none_without_any(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_is_used_and_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 100, 95)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"checkpoint-{step:08d}.{suffix}" for step in (95, 100) for suffix in ("json", "safetensors")
    ]
    back = latest_checkpoint(tmp_path)
    assert back is not None
    assert back.step == 100


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "missing", "seal_truncated", "values", "no object", "unsealed"]
)
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 5, 10)
    tensors, seal = (tmp_path / f"checkpoint-00000010.{suffix}" for suffix in ("safetensors", "json"))
    content = tensors.read_bytes()
    if damage == "truncated":
        tensors.write_bytes(content[:-1])
    elif damage == "flipped":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        tensors.unlink()
    elif damage == "seal_truncated":
        seal.write_text(seal.read_text()[:20])
    elif damage == "values":
        seal.write_text(seal.read_text().replace('"loss": 1.0', '"loss": 1.5'))
    elif damage == "no object":
        seal.write_text("[]")
    else:
        seal.unlink()
    back = latest_checkpoint(tmp_path)
    assert back is not None
    assert back.step == 5


def test_all_damaged_is_none(tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    assert latest_checkpoint(tmp_path) is None


def test_what_a_killed_writer_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-00000010.safetensors.partial").write_bytes(b"half")
    save(tmp_path, 5)
    back = latest_checkpoint(tmp_path)
    assert back is not None
    assert back.step == 5


def test_a_sealed_file_comes_back_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "images.npy"
    assert read_sealed(file) is None
    for content in (b"", b"content"):
        save_sealed(file, content)
        assert read_sealed(file) == content
    sealed = file.read_bytes()
    for damaged in (b"", sealed[:-1], sealed[:20], bytes([sealed[0] ^ 1]) + sealed[1:], sealed[:-1] + b"T"):
        file.write_bytes(damaged)
        assert read_sealed(file) is None
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]
