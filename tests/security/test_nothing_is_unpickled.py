"""No file can make the program run what is in it: proved on the text of every module, and by files that try."""

from __future__ import annotations

import ast
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from analysis.html_report import html_of
from experiments.plan import load_plan
from experiments.plan_yaml import read_yaml
from robuq.config import ConfigError, DataConfig, ModelConfig
from robuq.data.load import load_data
from robuq.evaluate import drawn_images
from robuq.models import build_dit, load_dit, save_dit
from robuq.record.artifact_files import write_artifact_files
from robuq.record.run_record import RunRecord

ROOT = Path(__file__).parents[2]
PACKAGES = ("robuq", "experiments", "analysis", "dashboards")
UNPICKLERS = ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg")
FORBIDDEN = (
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package",
    "shutil.unpack_archive",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "input",
    "__import__",
    "tempfile.mktemp",
)
LOADERS = {
    "torch": {"load"},
    "numpy": {"load"},
    "yaml": {"load", "full_load", "unsafe_load"},
    "pandas": {"read_pickle"},
}
SHELLS = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output")


def faults(text: str) -> list[str]:
    """What a module does that could run the content of a file or the text of an argument."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += _imports(node)
        elif isinstance(node, ast.Call):
            found += _call(ast.unparse(node.func), node)
    return found


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        names = [alias.name for alias in node.names]
        if (node.module or "").split(".")[0] in UNPICKLERS and names != ["UnpicklingError"]:
            yield f"imports {node.module}"
        if node.module == "subprocess" or (node.module == "os" and {"system", "popen"} & set(names)):
            yield f"imports {', '.join(names)} of {node.module}: write them out, so that this test sees them"
        if LOADERS.get(node.module or "", set()) & {*names}:
            yield f"imports {', '.join(names)} of {node.module}: write them out, so that this test sees them"
    else:
        yield from (f"imports {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)


def _call(name: str, node: ast.Call) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in FORBIDDEN or name.startswith(("os.exec", "os.spawn")):
        yield f"calls {name}"
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and not _is(given.get("allow_pickle"), False):
        yield "np.load without allow_pickle=False"
    if name.endswith("read_array") and not _is(given.get("allow_pickle"), False):
        yield "read_array without allow_pickle=False"
    if name == "yaml.load" and not (isinstance(given.get("Loader"), ast.Name) and given["Loader"].id == "_Loader"):
        yield "yaml.load without the safe loader"
    if name in SHELLS and (
        not _is(given.get("shell", ast.Constant(False)), False)
        or isinstance(node.args[0], ast.Constant | ast.JoinedStr)
    ):
        yield f"{name} by a shell"
    if name.endswith((".extractall", ".extract")):
        yield f"{name} unpacks to names that the archive chooses"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def modules() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_no_module_can_run_what_a_file_holds() -> None:
    assert len(modules()) > 100
    found = {str(file.relative_to(ROOT)): list_ for file in modules() if (list_ := faults(file.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=x)",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.load(t)",
        "yaml.unsafe_load(t)",
        "eval('1')",
        "exec(t)",
        "os.system(t)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(words, shell=x)",
        "subprocess.run(f'ls {x}')",
        "from subprocess import run",
        "from os import system",
        "from torch import load",
        "from numpy import load as read",
        "from yaml import unsafe_load",
        "archive.extractall(p)",
        "pd.read_pickle(f)",
        "os.execv(a, b)",
    ],
)
def test_each_of_these_is_seen(text: str) -> None:
    assert faults(text)


def test_the_yaml_loader_makes_plain_data_alone() -> None:
    from experiments import plan_yaml

    assert issubclass(plan_yaml._Loader, yaml.SafeLoader)
    own = {kind for kind in plan_yaml._Loader.yaml_constructors if kind not in yaml.SafeLoader.yaml_constructors}
    assert own == set()
    with pytest.raises(ConfigError, match="tags"):
        read_yaml("!!python/object/apply:os.system ['true']", "x")


# --- files that try -------------------------------------------------------------------------------------------


class Attack:
    """Whoever unpickles it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


def attack_arrays(trace: Path, *names: str) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **{name: np.array([Attack(trace)], dtype=object) for name in names})
    return stream.getvalue()


def test_the_attack_works(trace: Path) -> None:
    pickle.loads(pickle.dumps(Attack(trace)))
    assert trace.is_dir()


def _latents(folder: Path, trace: Path) -> object:
    (folder / "latents.npz").write_bytes(attack_arrays(trace, "latents", "labels"))
    return load_data(DataConfig(name="latents", path=str(folder / "latents.npz")))


def _pickled_latents(folder: Path, trace: Path) -> object:
    (folder / "latents.npz").write_bytes(pickle.dumps(Attack(trace)))
    return load_data(DataConfig(name="latents", path=str(folder / "latents.npz")))


def _weights(folder: Path, trace: Path) -> object:
    save_dit(build_dit(ModelConfig(width=8, num_layers=1, num_heads=1), 0), folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": Attack(trace)}, folder / "diffusion_pytorch_model.bin")
    return load_dit(folder)


def _old_weights(folder: Path, trace: Path) -> object:
    save_dit(build_dit(ModelConfig(width=8, num_layers=1, num_heads=1), 0), folder)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Attack(trace)))
    return load_dit(folder)


def _samples(folder: Path, trace: Path) -> object:
    (folder / "samples.npz").write_bytes(attack_arrays(trace, "images", "labels"))
    record = RunRecord(
        plan="p",
        key="k",
        variant="v",
        label="l",
        act_bits=None,
        seed=0,
        pretrain_seed=0,
        status="finished",
        protocol="x",
        dataset="digits",
        config={},
        stages={},
        artifacts={"samples.npz": str(folder / "samples.npz")},
    )
    (folder / "files").mkdir()
    return write_artifact_files(record, folder / "files")


def _drawn_before(folder: Path, trace: Path) -> object:
    """A sealed batch of images, as an evaluation that was killed leaves it."""
    from robuq.checkpoint import save_sealed
    from robuq.config import DiffusionConfig, EvalConfig, SampleConfig

    stream = io.BytesIO()
    np.save(stream, np.array([Attack(trace)], dtype=object), allow_pickle=True)
    save_sealed(folder / "checkpoint-images-00000000.npy", stream.getvalue())
    model = build_dit(ModelConfig(width=8, num_layers=1, num_heads=1), 0)
    config = EvalConfig(sample=SampleConfig(steps=1, num_images=2))
    return drawn_images(model, torch.zeros(2, dtype=torch.long), DiffusionConfig(), config, folder)


def _plan(folder: Path, trace: Path) -> object:
    (folder / "plan.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{trace}']\n")
    return load_plan(folder / "plan.yaml")


def _paper_arrays(folder: Path, trace: Path) -> object:
    from analysis.recorded import Source
    from dashboards import cached

    (folder / "a.npz").write_bytes(attack_arrays(trace, "images"))
    return cached._arrays.__wrapped__(Source("sqlite:////none"), str(folder / "a.npz"), "")  # type: ignore[attr-defined]


REFUSALS: dict[Callable[[Path, Path], object], str] = {
    _latents: "no plain array",
    _pickled_latents: "not a zip file",
    _weights: "Weights only load failed",
    _old_weights: "header",
    _samples: "Object arrays cannot be loaded",
    _drawn_before: "Object arrays cannot be loaded",
    _plan: "tags",
    _paper_arrays: "Object arrays cannot be loaded",
}


@pytest.mark.parametrize("load", REFUSALS, ids=lambda load: load.__name__.strip("_"))
def test_a_malicious_file_is_refused(load: Callable[[Path, Path], object], tmp_path: Path, trace: Path) -> None:
    """For what it is: whatever is refused for another reason was not tried."""
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(ValueError, match=REFUSALS[load]):
        load(folder, trace)
    assert not trace.exists()


# --- pages ----------------------------------------------------------------------------------------------------


def test_markup_in_names_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    text = "# a\n\n<script>alert(1)</script>\n\nb <img src=x onerror=alert(1)> <u>2</u> [c](javascript:alert(1))\n"
    page = html_of(text, tmp_path)
    body = page[page.index("<main>") :]
    assert "<script" not in body
    assert "<img" not in body
    assert 'href="javascript' not in body
    assert "<u>2</u>" in body


def test_a_page_takes_no_file_of_elsewhere_along(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("s3cr3t")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "own.csv").write_text("own")
    text = f"# a\n\n[x](../secret.txt) [y]({tmp_path}/secret.txt) [z](%2e%2e/secret.txt) [own](own.csv)\n"
    page = html_of(text, tmp_path / "page")
    assert "czNjcjN0" not in page  # base64 of it
    assert page.count("base64,") == 1
