"""Files that are truncated, flipped, emptied or gone: found by their checksums, said, and redone from the last good."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_commands import FaultCommands, Tally, Undisturbed
from torch import Tensor

from experiments.output import Output
from robuq.config import MODEL_PRESETS, DataConfig, DiffusionConfig, TrainConfig, resolve_specs
from robuq.data.load import ImageData, load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT, build_dit
from robuq.quant.surgery import quantize_
from robuq.stages import StageStore, make_stage
from robuq.train import RowFile, train
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]
CONFIG = TrainConfig(steps=8, batch_size=8, warmup_steps=1, log_every=1, checkpoint_every=2, telemetry_every=2)
KILLED_AT = 7


class Killed(Exception):
    pass


Damage = Callable[[Path, random.Random], None]


def flip_a_bit(file: Path, dice: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, dice: random.Random) -> None:
    os.truncate(file, dice.randrange(file.stat().st_size))


def empty(file: Path, dice: random.Random) -> None:
    os.truncate(file, 0)


def fill_with_zeros(file: Path, dice: random.Random) -> None:
    """What a machine that loses its power can leave."""
    file.write_bytes(bytes(file.stat().st_size))


def remove(file: Path, dice: random.Random) -> None:
    file.unlink()


DAMAGES: tuple[Damage, ...] = (flip_a_bit, truncate, empty, fill_with_zeros, remove)


# --- an unfinished stage --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


def model() -> DiT:
    made = build_dit(NANO, seed=3)
    quantize_(made, resolve_specs(variant("robuq_uniform"), NANO.num_layers), seed=0)
    return made


def trained(data: ImageData, work: Path, stop_at: int | None = None) -> dict[str, Tensor]:
    def on_step(done: int) -> None:
        if done == stop_at:
            raise Killed

    network = model()
    train(network, data, NoiseSchedule(DiffusionConfig()), CONFIG, 5, work, on_step=on_step)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def killed(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Tensor]]:
    """A folder of work that was killed, one of work that was not, and the weights of the latter."""
    whole = tmp_path_factory.mktemp("whole")
    weights = trained(data, whole)
    work = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        trained(data, work, KILLED_AT)
    return work, whole, weights


def sealed_files(work: Path) -> list[str]:
    return sorted(file.name for file in work.iterdir() if file.name != "progress.json")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_work_is_redone_to_the_same_bits(
    killed: tuple[Path, Path, dict[str, Tensor]], data: ImageData, tmp_path: Path, tally: Tally, damage: Damage
) -> None:
    """Every file of an unfinished training, one by one: from the checkpoint before, or from nothing."""
    work, whole, weights = killed
    names = sealed_files(work)
    assert len(names) == 7  # two checkpoints of two files, and three files of rows
    for name in names:
        broken = shutil.copytree(work, tmp_path / name)
        damage(broken / name, random.Random(f"{damage.__name__} {name}"))
        got = trained(data, broken)
        problems = [f"{key} differs" for key, tensor in weights.items() if not torch.equal(got[key], tensor)]
        problems += [
            f"{rows} differ after {name}"
            for rows in ("history.jsonl", "layers.jsonl")
            if (broken / rows).read_bytes() != (whole / rows).read_bytes()
        ]
        steps = [row["step"] for row in RowFile(broken / "timing.jsonl").rows()]
        problems += [] if steps == list(range(1, CONFIG.steps + 1)) else [f"times of steps {steps}"]
        assert tally("a file of an unfinished stage damaged", problems) == []


def test_what_only_shows_how_far_it_is_can_be_missed(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    stage = make_stage("qat", {}, "x", {})
    work = store.open_work(stage)
    for content in (b"", b"{", b"\xff\xfe", b"[1]"):
        (work / "progress.json").write_bytes(content)
        (work / "failure.json").write_bytes(content)
        assert store.progress(stage) is None
        assert store.failure(stage) is None


# --- finished stages and records ------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_damage_to_a_finished_stage_is_seen(output: Path, tally: Tally) -> None:
    store, dice = StageStore(output / "stages"), random.Random(0)
    for folder in sorted(folder for folder in store.root.glob("*/*") if folder.is_dir()):
        stage_id = f"{folder.parent.name}/{folder.name}"
        assert store.damage(stage_id) is None
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            content = file.read_bytes()
            for damage in DAMAGES if content else (remove,):
                damage(file, dice)
                if file.exists() and file.read_bytes() == content:
                    continue  # there were zeros before
                seen = store.damage(stage_id) is not None
                assert tally("a file of a finished stage damaged", [] if seen else [f"{file} is believed"]) == []
                file.write_bytes(content)


@pytest.mark.slow
def test_damaged_stages_and_records_are_made_anew(
    output: Path, commands: FaultCommands, undisturbed: Undisturbed, tally: Tally
) -> None:
    dice, words = random.Random(1), commands.words("sweep", output)
    metrics = min(output.glob("stages/evaluate/*/result.json"))
    used = json.loads((metrics.parent / "stage.json").read_text())["inputs"]["qat"]
    weights = min((output / "stages" / used).glob("model/*.safetensors"))
    flip_a_bit(weights, dice)
    truncate(metrics, dice)
    ended = commands(*words)
    problems = ended.problems(0, "it was set aside and is made anew") + undisturbed.differences("sweep", output)
    assert tally("finished stages damaged, and a sweep", problems) == []
    record = min(output.glob("runs/*/*.json"))
    for what, file in (("record", record), ("note of what was sent", record.with_suffix(".sent"))):
        truncate(file, dice)
        said = f"{file} cannot be read: `robuq doctor --fix` sets it aside, a sweep makes it anew"
        ended = commands(*words)
        problems = ended.problems(2, said)
        problems += commands("doctor", "--fix", "--output", output).problems(1, "damaged record")
        problems += commands(*words).problems(0) + undisturbed.differences("sweep", output)
        assert tally(f"{what} damaged", problems) == []


@pytest.mark.slow
def test_a_tracking_store_that_is_no_database(
    output: Path, commands: FaultCommands, undisturbed: Undisturbed, tally: Tally
) -> None:
    (store := Output(output).tracking_file).write_bytes(b"no database" * 1000)
    ended = commands(*commands.words("sweep", output))
    problems = ended.problems(0, f"{store} is not available (it is damaged, or no SQLite database: restore it, or move")
    problems += commands("doctor", "--output", output).problems(1, "tracking store: ")
    store.rename(output / "moved.db")
    problems += commands(*commands.words("sweep", output)).problems(0) + undisturbed.differences("sweep", output)
    assert tally("tracking store damaged", problems) == []
