"""What of a module's text could run the content of a file or the text of an argument. Names are followed through every
form of import; what is fetched by `getattr`, or handed on by a library, is not seen."""

from __future__ import annotations

import ast
from collections.abc import Iterator

OWN = ("robuq", "experiments", "analysis", "dashboards")
UNPICKLERS = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg")
FORBIDDEN = (
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "posix.*", "pty.spawn",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "runpy.*", "code.*", "importlib.util.module_from_spec", "importlib.machinery.*",
    "pandas.read_pickle", "pandas.io.pickle.*", "torch.jit.load", "torch.hub.load", "torch.package.*",
    "yaml.unsafe_*", "yaml.full_*", "yaml.load_all", "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader",
    "shutil.unpack_archive", "tempfile.mktemp",
    # libraries that unpickle by themselves what they are given to read
    "optuna.storages.journal.JournalRedisBackend", "ray.cloudpickle.*", "mlflow.*.load_model",
    "sklearn.datasets.fetch_*",
)  # fmt: skip
# What may be named in one place: the base of the sampler that does not unpickle.
ELSEWHERE = {"optuna.samplers.CmaEsSampler": "robuq/ampn/search/cmaes_sampler.py"}
SHELLS = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output")
IMPORTERS = ("importlib.import_module", "importlib.reload")
VETTED = ("torch.*load", "numpy.*load", "numpy.*read_array", "yaml.*load", *SHELLS, *IMPORTERS)  # by their arguments


def faults(text: str, file: str = "") -> list[str]:
    """`file`: from the repository's root."""
    tree = ast.parse(text)
    names, called = _imported(tree), {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += _imports(node, file)
        elif isinstance(node, ast.Call):
            found += _call(_resolved(node.func, names), node)
        elif isinstance(node, ast.Attribute | ast.Name):
            found += _reference(_resolved(node, names), file, id(node) in called)
    return found


def _imported(tree: ast.AST) -> dict[str, str]:
    """{name in the module: what it stands for}; `import a.b` makes `a`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname: each.name for each in node.names if each.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return names


def _resolved(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name, without the import's alias; the text of what is no name."""
    first, dot, rest = ast.unparse(node).partition(".")
    return f"{names.get(first, first)}{dot}{rest}".removeprefix("builtins.")


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    """`a.*b`: below `a`, at any depth, ending in `b`."""
    for pattern in patterns:
        first, star, last = pattern.partition("*")
        if name == pattern or (star and name.startswith(first) and name.endswith(last)):
            return True
    return False


def _imports(node: ast.Import | ast.ImportFrom, file: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        modules = [each.name for each in node.names]
    else:
        modules = [f"{node.module}.{each.name}" for each in node.names]
    for name in modules:
        if name.split(".")[0] in UNPICKLERS and name != "pickle.UnpicklingError":
            yield f"imports {name}"
        if isinstance(node, ast.ImportFrom):
            yield from _reference(name, file, called=True)
        if name.endswith(".*"):
            yield f"imports {name}: write the names out, so that this is seen"


def _reference(name: str, file: str, called: bool) -> Iterator[str]:
    if _fits(name, FORBIDDEN) or ELSEWHERE.get(name, file) != file:
        yield f"names {name}"
    if not called and _fits(name, VETTED):
        yield f"hands {name} on: call it, so that its arguments are seen"


def _call(name: str, node: ast.Call) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if _fits(name, ("torch.*load",)) and not _is(given.get("weights_only"), True):
        yield f"{name} without weights_only=True"
    if (_fits(name, ("numpy.*load",)) or name.endswith("read_array")) and not _is(given.get("allow_pickle"), False):
        yield f"{name} without allow_pickle=False"
    if _fits(name, ("yaml.*load",)) and ast.unparse(given.get("Loader", ast.Constant(None))) != "_Loader":
        yield f"{name} without the safe loader"
    if name in SHELLS and (
        not _is(given.get("shell", ast.Constant(False)), False)
        or not node.args
        or isinstance(node.args[0], ast.Constant | ast.JoinedStr)
    ):
        yield f"{name} by a shell"
    if name.endswith((".extractall", ".extract")):
        yield f"{name} unpacks to names that the archive chooses"
    if name in IMPORTERS and not _is_own_module(node):
        yield f"{name} of another module than our own"
    if name == "input":
        yield "asks for input"
    if not _is(given.get("allow_pickle", ast.Constant(False)), False):
        yield f"{name} with pickles"


def _is_own_module(node: ast.Call) -> bool:
    """As `"robuq.x"` or `f"robuq.{x}"`."""
    first = node.args[0] if node.args else None
    if isinstance(first, ast.JoinedStr):
        first = first.values[0]
    return isinstance(first, ast.Constant) and str(first.value).startswith(tuple(f"{name}." for name in OWN))


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
