"""What ARCHITECTURE.md says of packages of others is what the code imports, and what it imports is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("robuq", "experiments", "analysis", "dashboards")
INSIDE = {"pydantic_core": "pydantic"}  # a package's own other name


def places() -> list[str]:
    """`analysis/`, `robuq/quant/`, `robuq/train.py`: what has its row, or its share of one."""
    parts = sorted(
        path for path in (ROOT / "robuq").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    )
    inside = [f"robuq/{path.name}" + ("/" if path.is_dir() else "") for path in parts if path.name != "__init__.py"]
    return [*(f"{name}/" for name in OURS if name != "robuq"), *inside]


def imported(place: str) -> set[str]:
    """Packages of others, by the names that are imported."""
    path = ROOT / place
    files = path.rglob("*.py") if path.is_dir() else [path]
    names = {name.partition(".")[0] for file in files for name in modules_in(ast.parse(file.read_text()))}
    return {INSIDE.get(name, name) for name in names - set(OURS) - sys.stdlib_module_names}


def modules_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_table_has_every_place_once_and_the_packages_that_it_imports() -> None:
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", (ROOT / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE)
    said = [(re.findall(r"`(.*?)`", first), set(last.split(", ")) - {"none"}) for first, last in rows]
    said = [(named, packages) for named, packages in said if not {"tests/", "docs/"} & set(named)]
    assert sorted(place for named, _ in said for place in named) == sorted(places())
    for named, packages in said:
        assert packages == {name for place in named for name in imported(place)}, named


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["dashboard"]
    declared = {normal(re.split(r"[<>=\[]", line)[0]) for line in [*project["dependencies"], *extra]}
    providers = packages_distributions()
    for name in sorted(name for place in places() for name in imported(place)):
        assert {normal(provider) for provider in providers[name]} & declared, name


def normal(name: str) -> str:
    return name.strip().lower().replace("_", "-")
