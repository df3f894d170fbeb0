"""A disk that fails while it is read: the kernel answers EIO. One line names the file, nothing that may be whole is set
aside or made anew, and the same command goes on once the disk gives it again."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from bad_sectors import bad_sectors, why_no_bad_sectors
from fault_commands import Ended, Fault, FaultCommands, Tally, Undisturbed
from PIL import Image

from experiments.output import Output
from robuq.config import ConfigError, DataConfig
from robuq.data.fingerprint import data_fingerprint
from robuq.data.load import load_data
from robuq.stages import StageStore
from robuq.storage_fault import OF_DISKS, StorageFault, reading

GOES_ON = "the same command continues where it was"
# Of a finished sweep, all of whose evaluations are asked for again: which file cannot be read, and from which byte on.
OF_SWEEPS = {
    "a stage's weights": ("stages/qat/*/model/*.safetensors", 4096),
    "a stage's checksums": ("stages/qat/*/result.json", 0),
    "a run's record": ("runs/*/*.json", 0),
    "a note of what was sent": ("runs/*/*.sent", 0),
}


Bad = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def bad(tmp_path_factory: pytest.TempPathFactory) -> Bad:
    """bad(file, first byte that cannot be read)"""
    if why := why_no_bad_sectors(tmp_path_factory.mktemp("trial")):
        pytest.skip(why)
    return bad_sectors


def files_of(folder: Path) -> dict[str, bytes]:
    """Stages and records, quarantine included; neither locks nor notes of what was sent, which come and change."""
    files = (file for part in ("stages", "runs") for file in (folder / part).rglob("*") if file.is_file())
    kept = (file for file in files if not file.name.startswith(".") and file.suffix != ".sent")
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


def said(ended: Ended, file: Path) -> list[str]:
    """Problems with how a command ended: exit code 1, and a last line that names the file."""
    line = f"robuq: cannot read {file} (Input/output error): look after the disk, or restore the file; {GOES_ON}"
    return ended.problems(1) + ([] if ended.last_line == line else [f"says {ended.last_line!r}"])


@pytest.mark.slow
@pytest.mark.parametrize("what", OF_SWEEPS)
def test_a_sweep_stops_and_throws_nothing_away(
    bad: Bad, commands: FaultCommands, undisturbed: Undisturbed, output: Path, tally: Tally, what: str
) -> None:
    pattern, first = OF_SWEEPS[what]
    file, kept = min(output.glob(pattern)), files_of(output)
    shutil.rmtree(output / "stages" / "evaluate")
    words = commands.words("sweep", output)
    with bad(file, first):
        problems = said(commands(*words), file)
    now = files_of(output)
    problems += [
        f"{name} is gone or has changed" for name in kept if "/evaluate/" not in name and now.get(name) != kept[name]
    ]
    problems += commands(*words).problems(0) + undisturbed.differences("sweep", output)
    assert tally(f"a disk that fails, while reading {what}", problems) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint-00000002.json", "checkpoint-00000002.safetensors", "history.jsonl"])
def test_training_is_not_begun_anew(
    bad: Bad, commands: FaultCommands, undisturbed: Undisturbed, tmp_path: Path, tally: Tally, name: str
) -> None:
    output = undisturbed.output(tmp_path / "out")
    words = commands.words("sweep", output)
    assert commands(*words, fault=Fault("checkpoint-00000003.json", 1, "kill", tmp_path)).code == -9
    (work,) = output.glob("stages/qat/*.work")
    file = work / name
    with bad(file):
        problems = said(commands(*words), file)
    problems += [] if file.is_file() else ["it was removed"]
    problems += commands(*words).problems(0) + undisturbed.differences("sweep", output)
    assert tally("a disk that fails, while reading a checkpoint", problems) == []


@pytest.mark.slow
def test_a_study_is_not_begun_anew(
    bad: Bad, commands: FaultCommands, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    output = undisturbed.output(tmp_path / "out")
    words = commands.words("search", output)
    assert commands(*words, fault=Fault("search.json", 3, "kill", tmp_path)).code == -9
    (journal,) = output.glob("searches/*/study.journal")
    with bad(journal):
        problems = said(commands(*words), journal)
        problems += commands("doctor", "--output", output).problems(
            1, f"unreadable file: {journal.relative_to(output)}: "
        )
    problems += commands(*words).problems(0) + undisturbed.differences("search", output)
    assert tally("a disk that fails, while reading a study", problems) == []


@pytest.mark.slow
def test_a_tracking_store(
    bad: Bad, commands: FaultCommands, undisturbed: Undisturbed, output: Path, tally: Tally
) -> None:
    store = Output(output).tracking_file
    with bad(store):
        ended = commands(*commands.words("sweep", output))
        line = (
            f"robuq: cannot use {output} (Input/output error): look after the disk, or choose another place; {GOES_ON}"
        )
        problems = ended.problems(1) + ([] if ended.last_line == line else [f"says {ended.last_line!r}"])
        problems += commands("doctor", "--output", output).problems(
            1, f"tracking store: sqlite:///{store}: cannot read "
        )
    problems += commands(*commands.words("sweep", output)).problems(0) + undisturbed.differences("sweep", output)
    assert tally("a disk that fails, while reading the tracking store", problems) == []


@pytest.mark.slow
def test_the_doctor_sets_nothing_aside(bad: Bad, commands: FaultCommands, output: Path, tally: Tally) -> None:
    """It goes on with what can be read."""
    assert commands(*commands.words("sweep", output)).code == 0  # the copy's records are sent
    kept = files_of(output)
    weights, record = min(output.glob("stages/qat/*/model/*.safetensors")), min(output.glob("runs/*/*.json"))
    (output / "stages" / "qat" / "0123456789abcdef.work").mkdir()
    with bad(weights, 4096), bad(record):
        ended = commands("doctor", "--fix", "--output", output)
    stage, name = f"qat/{weights.parents[1].name}", record.relative_to(output)
    problems = ended.problems(
        1,
        f"unreadable file: {stage}: cannot read {weights} (",
        f"unreadable file: {name}: cannot read {record} (",
        "unfinished stage",
    )
    problems += [] if files_of(output) == kept else ["it has changed something"]
    assert tally("a disk that fails, and the doctor", problems) == []


@pytest.mark.slow
def test_a_network_that_is_mapped_into_memory(
    bad: Bad, commands: FaultCommands, output: Path, tally: Tally, tmp_path: Path
) -> None:
    """The kernel would end the process, without a word."""
    file = min(output.glob("stages/qat/*/model/*.safetensors"))
    run = next(record for record in Output(output).records() if record.stages["qat"] == file.parents[1].name)
    with bad(file, 4096):
        ended = commands("sample", run.key, "--output", output, "--file", tmp_path / "grid.png")
    assert tally("a disk that fails, while reading a network", said(ended, file)) == []


# --- data -----------------------------------------------------------------------------------------------------


def pictures(folder: Path) -> tuple[DataConfig, Path]:
    dice = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for number in range(4):
            pixels = dice.integers(0, 255, (64, 64), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return DataConfig(name="image_folder", path=str(folder), image_size=8), folder / "dogs" / "2.png"


def latents(folder: Path) -> tuple[DataConfig, Path]:
    np.savez(folder / "latents.npz", latents=np.zeros((40, 4, 16, 16), np.float32), labels=np.arange(40) % 2)
    return DataConfig(name="latents", path=str(folder / "latents.npz"), image_size=16), folder / "latents.npz"


@pytest.mark.parametrize("make", [pictures, latents])
@pytest.mark.parametrize("read", [load_data, data_fingerprint])
def test_data(
    bad: Bad, make: Callable[[Path], tuple[DataConfig, Path]], read: Callable[[DataConfig], object], tmp_path: Path
) -> None:
    """No mistake of the user, which has another exit code, and a damaged file another remedy."""
    config, file = make(tmp_path)
    with bad(file), pytest.raises(StorageFault, match=re.escape(f"cannot read {file} (Input/output error)")):
        read(config)
    assert file.is_file()
    read(config)


# --- what else a disk may answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", OF_DISKS)
def test_every_answer_of_a_failing_disk_is_one(number: int, tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match=re.escape(f"cannot read {tmp_path} (")), reading(tmp_path):
        raise OSError(number, "what the system says")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_other_answers_are_not(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="what the system says"), reading(tmp_path):
        raise OSError(number, "what the system says")


def test_what_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """Another user's folder, say. Root may read everything: a link to a circle of links fails for root, too."""
    (tmp_path / "qat" / "k").mkdir(parents=True)
    (tmp_path / "qat" / "k" / "result.json").symlink_to(tmp_path / "circle")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OSError, match="symbolic links"):
        StageStore(tmp_path).damage("qat/k")


def test_a_file_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        data_fingerprint(DataConfig(name="latents", path=str(tmp_path / "none.npz")))
