"""The borders between packages: each contract of pyproject.toml holds, and catches what it forbids.

A contract that cannot fail (a misspelt module, an ignored import that is too wide) looks just like one that holds. So a
copy of the packages gets one forbidden import, and exactly the contract that forbids it must break.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in SETTINGS["contracts"]}

METHOD = "The method knows nothing of plans, papers, plots"
DASHBOARDS = "Dashboards look through analysis only"
ANALYSIS = "Analysis knows records, not plans or pages"
PLANS = "Plans do not know pages"
PARTS = "The method's parts import downwards only"
TORCH_FREE = "Configuration, records and analysis are free of torch and ray"
MLFLOW = "mlflow has one home: robuq.record.mlflow"
RAY = "ray has one home: experiments.executors"
OPTUNA = "optuna has one home: robuq.ampn.search"
STREAMLIT = "streamlit has one home: dashboards"

VIOLATIONS = [  # (contract, or several, file, what is added to it)
    (METHOD, "robuq/train.py", "import experiments.plan"),
    (METHOD, "robuq/metrics/score.py", "from analysis import stats"),
    (METHOD, "robuq/train.py", "import dashboards"),
    (DASHBOARDS, "dashboards/planted.py", "from robuq.config import RunConfig"),
    (DASHBOARDS, "dashboards/planted.py", "import experiments.plan"),
    (ANALYSIS, "analysis/load.py", "import experiments.plan"),
    (ANALYSIS, "analysis/live.py", "from dashboards import settings"),
    (PLANS, "experiments/cli_dashboard.py", "from dashboards.settings import Settings"),
    (PARTS, "robuq/models/dit.py", "from robuq.quant.grids import levels"),
    (PARTS, "robuq/models/dit.py", "import robuq.calibrate"),  # which imports robuq.quant
    (PARTS, "robuq/quant/surgery.py", "from robuq.diffusion.loss import noise_loss"),  # beside it
    (PARTS, "robuq/train.py", "import robuq.pipeline"),
    (PARTS, "robuq/planted.py", "import math"),  # of no layer
    (TORCH_FREE, "robuq/config/base.py", "from torch import Tensor"),
    (TORCH_FREE, "robuq/ampn/ranking.py", "import torch"),
    (TORCH_FREE, "robuq/scratch.py", "import torch"),
    ((PARTS, TORCH_FREE), "robuq/cost.py", "def build() -> None:\n    from robuq.models import build_dit"),
    ((PARTS, TORCH_FREE), "robuq/stages.py", "import robuq.train"),
    (TORCH_FREE, "robuq/record/collect.py", "import torch"),
    (TORCH_FREE, "robuq/variants.py", "import torchmetrics"),
    (TORCH_FREE, "robuq/data/fingerprint.py", "from robuq.data.load import load_data"),
    (TORCH_FREE, "analysis/stats.py", "import torch.nn.functional as F"),
    (TORCH_FREE, "dashboards/planted.py", "import torch"),
    (MLFLOW, "robuq/record/collect.py", "import mlflow"),
    (MLFLOW, "analysis/load.py", "from mlflow.tracking import MlflowClient"),
    (MLFLOW, "experiments/launch.py", "def client() -> None:\n    import mlflow.artifacts"),
    (RAY, "robuq/train.py", "import ray"),
    (RAY, "experiments/launch.py", "from ray.util import ActorPool"),
    (OPTUNA, "robuq/train.py", "import optuna"),
    (OPTUNA, "experiments/plan.py", "from optuna.samplers import TPESampler"),
    (STREAMLIT, "analysis/live.py", "import streamlit as st"),
    (STREAMLIT, "experiments/cli_dashboard.py", "def run() -> None:\n    from streamlit.web import cli"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages and their settings."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in SETTINGS["root_packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In that folder, whose packages come before the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def verdicts(folder: Path) -> dict[str, str]:
    """{contract: KEPT or BROKEN}."""
    done = python(folder, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache")
    found = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, flags=re.MULTILINE))
    assert set(found) == set(CONTRACTS), done.stdout + done.stderr
    assert done.returncode == ("BROKEN" in found.values())
    return found


def test_the_code_as_it_is_keeps_every_contract(tree: Path) -> None:
    assert set(verdicts(tree).values()) == {"KEPT"}


def test_every_contract_has_a_planted_violation() -> None:
    assert {contract for contract, _, _ in VIOLATIONS if isinstance(contract, str)} == set(CONTRACTS)


@pytest.mark.parametrize(("contract", "file", "line"), VIOLATIONS)
def test_a_planted_import_breaks_exactly_its_contract(
    tree: Path, contract: str | tuple[str, ...], file: str, line: str
) -> None:
    with (tree / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    broken = {name for name, verdict in verdicts(tree).items() if verdict == "BROKEN"}
    assert broken == ({contract} if isinstance(contract, str) else set(contract))


def test_what_is_declared_free_of_torch_imports_without_it() -> None:
    """At run time, too: the linter reads the imports of our files, not those of the libraries between."""
    contract = CONTRACTS[TORCH_FREE]
    forbidden = [*contract["forbidden_modules"], "mlflow", "optuna"]
    code = f"""
import importlib, pkgutil, sys
names = []
for source in {contract["source_modules"]}:
    module = importlib.import_module(source)
    names.append(source)
    names += [m.name for m in pkgutil.walk_packages(getattr(module, "__path__", []), source + ".")]
for name in names:
    importlib.import_module(name)
print(len(names), [name for name in {forbidden} if name in sys.modules])
"""
    done = python(ROOT, "-c", code)
    assert done.returncode == 0, done.stderr
    count, _, found = done.stdout.strip().partition(" ")
    assert int(count) > len(contract["source_modules"])
    assert found == "[]"
