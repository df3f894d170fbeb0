"""No file can make the program run what is in it: proved on the text of every module, and by files that try."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dangerous_calls import OWN, faults
from optuna.samplers import CmaEsSampler

from analysis.html_report import html_of
from experiments.plan import load_plan
from experiments.plan_yaml import read_yaml
from robuq.ampn.problem import Problem
from robuq.ampn.search import BitSearch, samplers
from robuq.config import Budget, ConfigError, DataConfig, ModelConfig, SearchConfig
from robuq.data.load import load_data
from robuq.evaluate import drawn_images
from robuq.models import build_dit, load_dit, save_dit
from robuq.record.artifact_files import write_artifact_files
from robuq.record.run_record import RunRecord

ROOT = Path(__file__).parents[2]


def modules() -> list[Path]:
    return sorted(file for package in OWN for file in (ROOT / package).rglob("*.py"))


def test_no_module_can_run_what_a_file_holds() -> None:
    assert len(modules()) > 100
    found = {
        str(file.relative_to(ROOT)): list_
        for file in modules()
        if (list_ := faults(file.read_text(), str(file.relative_to(ROOT))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch as t\nt.load(f)",
        "from torch import load\nload(f)",
        "from torch.serialization import load as read\nread(f)",
        "import torch\nread = torch.load\nread(f)",
        "import torch\nmap(torch.load, files)",
        "from torch.package import PackageImporter",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f, allow_pickle=x)",
        "import numpy\nnumpy.lib.npyio.load(f, allow_pickle=True)",
        "from numpy import load as read\nread(f)",
        "from numpy.lib import format as own\nown.read_array(f)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import yaml\nyaml.load(t)",
        "import yaml as y\ny.load(t, Loader=y.Loader)",
        "import yaml\nyaml.unsafe_load(t)",
        "from yaml import unsafe_load\nunsafe_load(t)",
        "import pandas as pd\npd.read_pickle(f)",
        "eval('1')",
        "exec(t)",
        "import builtins\nbuiltins.eval(t)",
        "run = eval\nrun(t)",
        "__import__('pickle').loads(t)",
        "from importlib import import_module\nimport_module('pickle').loads(t)",
        "import importlib\nimportlib.import_module(name)",
        "import importlib as i\ni.import_module(f'{name}.robuq')",
        "import importlib\nget = importlib.import_module",
        "from os import *",
        "import os\nos.system(t)",
        "from os import system\nsystem(t)",
        "import os\nos.execv(a, b)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run(words, shell=x)",
        "import subprocess\nsubprocess.run(f'ls {x}')",
        "from subprocess import run\nrun('ls')",
        "archive.extractall(p)",
        "from optuna.samplers import CmaEsSampler",
        "import optuna\noptuna.samplers.CmaEsSampler(seed=0)",
        "from optuna.storages.journal import JournalRedisBackend",
    ],
)
def test_each_of_these_is_seen(text: str) -> None:
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as n\nn.load(f, allow_pickle=False)",
        "import importlib\nimportlib.import_module('robuq.train')\nimportlib.import_module(f'dashboards.views.{x}')",
        "import subprocess\nsubprocess.run([program, *words])",
        "import re\nre.compile('x')\nSensitivityTable.load(f)",
    ],
)
def test_none_of_these_is(text: str) -> None:
    assert faults(text) == []


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


STUDY = SearchConfig(space="layer", sampler="cmaes", evaluations=30, enqueue=())


def _search(journal: Path) -> BitSearch:
    cost = np.outer(np.full(6, 1 / 6), (1, 2, 3, 4))
    damage = np.exp2(-np.arange(24.0)).reshape(6, 4)
    names = tuple(f"transformer_blocks.{block}.{role}" for block in (0, 1) for role in ("qkv", "proj", "fc1"))
    problem = Problem(names, (1, 2, 3, 4), damage, cost, 2.0, Budget(limit=2.0, weights="layers"))
    return BitSearch(problem, STUDY, storage=journal, study_name="s", known={})


def _study(folder: Path, trace: Path) -> object:
    """With a state of CMA-ES as Optuna itself keeps it."""
    search = _search(journal := folder / "study.journal")
    for proposal in islice(iter(search.ask, None), 3):
        search.finish(proposal.number, float(proposal.number))
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        if "system_attrs" in record:
            record["system_attrs"] |= {
                f"{kind}:optimizer:0": pickle.dumps(Attack(trace)).hex() for kind in ("cma", "cmawm")
            }
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    return _search(journal).ask()


REFUSALS: dict[Callable[[Path, Path], object], str] = {
    _latents: "no plain array",
    _pickled_latents: "not a zip file",
    _weights: "Weights only load failed",
    _old_weights: "header",
    _samples: "Object arrays cannot be loaded",
    _drawn_before: "Object arrays cannot be loaded",
    _plan: "tags",
    _paper_arrays: "Object arrays cannot be loaded",
    _study: "the study's state of CMA-ES is not as a search writes it",
}


@pytest.mark.parametrize("load", REFUSALS, ids=lambda load: load.__name__.strip("_"))
def test_a_malicious_file_is_refused(load: Callable[[Path, Path], object], tmp_path: Path, trace: Path) -> None:
    """For what it is: whatever is refused for another reason was not tried."""
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(ValueError, match=REFUSALS[load]):
        load(folder, trace)
    assert not trace.exists()


def test_optunas_own_sampler_runs_what_a_study_holds(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(samplers.SAMPLERS, "cmaes", (CmaEsSampler, samplers.SAMPLERS["cmaes"][1]))
    _study(tmp_path, trace)
    assert trace.is_dir()


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
