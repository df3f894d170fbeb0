"""Options that are empty, that contradict each other, or that mean nothing where they stand: one line, exit code 2, and
nothing was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_in_process import Complaint, Robuq

from experiments.executors import check_address, check_address_form
from experiments.plan import build_plan, load_plan, packaged_plans
from robuq.config import ConfigError, DataConfig

SWEEP, SEARCH = ("sweep", "smoke"), ("search", "smoke")
NO_GPU = f"cuda:{torch.cuda.device_count()}"  # one more than there are


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ((*SWEEP, "--output", ""), "--output"),
        (("doctor", "--output", ""), "--output"),
        (("report", "smoke", "--tracking-uri", ""), "--tracking-uri"),
        (("doctor", "--storage", ""), "--storage"),
        (("allocate", "--file", ""), "--file"),
        (("sample", "baseline/0", "--file", ""), "--file"),
    ],
)
def test_empty_values(
    complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = complaint(*words)
    assert f"'{option}'" in said
    assert "it is empty: " in said
    assert list(tmp_path.iterdir()) == []


# --- workers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [SWEEP, SEARCH], ids=" ".join)
@pytest.mark.parametrize(
    "option", [("--workers", 4), ("--address", "127.0.0.1:1"), ("--cpus-per-run", 1), ("--gpus-per-run", 0.5)]
)
def test_options_of_ray_beside_the_local_executor(
    complaint: Complaint, out: Path, verb: tuple[str, str], option: tuple[str, object]
) -> None:
    said = complaint(*verb, "--output", out, "--executor", "local", *option)
    assert said == f"{option[0]} is for --executor ray: leave one of the two out"
    assert not out.exists()


def test_the_cluster_of_the_environment_means_nothing_to_the_local_executor(
    complaint: Complaint, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is this machine's, and is looked at."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = complaint(*SWEEP, "--executor", "local", "--device", NO_GPU, "--output", out)
    assert said.startswith(f"no device {NO_GPU!r}")


@pytest.mark.parametrize("verb", [SWEEP, SEARCH], ids=" ".join)
def test_an_address_that_is_none_is_refused_before_anything_is_written(
    complaint: Complaint, out: Path, verb: tuple[str, str]
) -> None:
    said = complaint(*verb, "--output", out, "--address", "nonsense:::")
    assert said == "no Ray address 'nonsense:::': HOST:PORT, ray://HOST:10001, auto or local"
    assert complaint(*verb, "--output", out, "--address", "127.0.0.1:1").startswith("no Ray cluster at '127.0.0.1:1': ")
    assert not out.exists()


@pytest.mark.parametrize("address", ["", "host", "host:", ":6379", "host:99999", "host:-1", "ray://", "://host"])
def test_addresses_that_ray_does_not_have(address: str) -> None:
    with pytest.raises(ConfigError, match="no Ray address"):
        check_address_form(address)


def test_addresses_that_ray_has() -> None:
    for address in ("local", "auto", "ray://host:10001", "host:6379", "[::1]:6379"):
        check_address_form(address)
    check_address("local")


DEVICES = [
    SWEEP,
    SEARCH,
    (*SWEEP, "--address", "auto"),
    ("train", "baseline"),
    ("sensitivity",),
    ("allocate",),
    ("evaluate", "baseline/0"),
    ("reproduce", "baseline/0"),
]


@pytest.mark.parametrize("words", DEVICES, ids=" ".join)
def test_a_device_that_no_machine_has(complaint: Complaint, out: Path, words: tuple[str, ...]) -> None:
    for device in ("tpu", "tpu:9", ""):
        said = complaint(*words, "--device", device, "--output", out)
        assert said == f"unknown device {device!r}: cpu, cuda, or a certain GPU such as cuda:1"
    assert not out.exists()


@pytest.mark.parametrize("verb", [SWEEP, SEARCH, ("train", "baseline")], ids=" ".join)
def test_a_device_that_this_machine_lacks(complaint: Complaint, out: Path, verb: tuple[str, str]) -> None:
    assert complaint(*verb, "--device", NO_GPU, "--output", out).startswith(f"no device {NO_GPU!r}")
    assert not out.exists()


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "setting", "option"),
    [
        (("train", "minmax", "--seed", 3), "seeds=1", "--seed"),
        (("train", "minmax", "--act-bits", 3), "act_bits=2", "--act-bits"),
        (("train", "minmax", "--preset", "nano"), "preset=digits", "--preset"),
        (("train", "minmax"), "variant=baseline", "VARIANT"),
        (("sensitivity", "--measure", "loss"), "ampn.measure=second_order", "--measure"),
        (("allocate", "--budget", 2), "ampn.budget.limit=3", "--budget"),
        (("allocate", "robuq"), "variant=robuq_uniform", "VARIANT"),
    ],
)
def test_an_option_and_a_setting_that_say_the_same(
    complaint: Complaint, out: Path, words: tuple[object, ...], setting: str, option: str
) -> None:
    said = complaint(*words, "--set", setting, "--output", out)
    assert said == f"{option} and --set {setting.partition('=')[0]} say the same: leave one of the two out"


def test_a_setting_in_place_of_an_option_that_was_not_given(complaint: Complaint, out: Path) -> None:
    """It is taken: the device is the next thing that is wrong."""
    said = complaint("train", "minmax", "--set", "seeds=1", "--set", "act_bits=3", "--device", NO_GPU, "--output", out)
    assert said.startswith(f"no device {NO_GPU!r}")


def test_digits_have_no_files(complaint: Complaint, out: Path) -> None:
    said = complaint(*SWEEP, "--set", "data.path=/etc/passwd", "--output", out)
    assert "name='digits' has no files: leave path='/etc/passwd' out" in said
    assert not out.exists()
    assert DataConfig(path=None) == DataConfig()


def test_a_baseline_that_is_no_row(complaint: Complaint, robuq: Robuq, out: Path) -> None:
    for verb in ("plan", "sweep", "status", "report"):
        said = complaint(verb, "smoke", "--set", "report.baseline=robuq_unifrom", "--output", out)
        assert said == "smoke.yaml: report.baseline: no row 'robuq_unifrom' - did you mean 'robuq_uniform'?"
    assert robuq("plan", "smoke", "--set", "report.baseline=robuq", "--output", out)[0] == 0


def test_a_baseline_of_the_file() -> None:
    content = {"name": "p", "preset": "nano", "grid": {"variant": ["minmax", "robuq"]}}
    build_plan(content)  # without one: rows are compared with none
    with pytest.raises(ConfigError, match=r"report\.baseline: no row 'nope' - allowed: minmax, robuq"):
        build_plan({**content, "report": {"baseline": "nope"}})
    named = {**content, "report": {"baseline": "minmax"}}
    build_plan(named, {"variant": "robuq"})  # the row was left out on the command line
    with pytest.raises(ConfigError, match="no row 'minmax'"):
        build_plan(named, {"variant": "robuq", "report": {"baseline": "minmax"}})


def test_the_packaged_plans_name_rows_of_their_own() -> None:
    for name in packaged_plans():
        plan = load_plan(name)
        assert plan.report.baseline in {run.variant for run in plan.runs}
