"""What no one should ever give: numbers, texts, names and documents that break readers, as strategies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    0,
    -0.0,
    -1,
    1,
    2,
    3,
    7,
    8,
    9,
    0.5,
    1e-320,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    10**400,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    -float("inf"),
    1_000_000,
    1_000_000_000,
)
TEXTS = (
    "",
    " ",
    "\n",
    "\t",
    "a\nb",
    "\x00",
    "a\x00b",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202etxt.exe",
    "\u2028",
    "\ud800",
    "\ufeff",
    "🦜" * 40,
    "ı",
    "İ",
    "a" * 300,
    "a" * 5000,
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "~root",
    "C:\\x",
    "%s%n%d",
    "{0.__class__}",
    "$(reboot)",
    "`id`",
    "; rm -rf /",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "[bold]x",
    "[/]",
    "null",
    "true",
    "on",
    "1e5",
    "0x10",
    "1_000",
    "١٢",
    "nan",
    "inf",
    "-inf",
    ".nan",
    ".inf",
    "-",
    "--",
    "--help",
    "=",
    "a=b",
    ",",
    "[",
    "{",
    "}",
    "!!python/object/apply:os.system ['id']",
    "*a",
    "&a",
    "<<",
    "http://u:p@h/x?token=t",
    "a.b.c",
    ".",
    "..a",
    "a.",
    "[]",
    "{}",
    '"',
    "'",
    "\\",
    "|",
    ">",
    "@",
    "%",
)
NAMES = (
    "../out",
    "/abs/olute",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    "a" * 64,
    "a" * 65,
    "CON",
    "a b",
    "a\n",
    "-a",
    "_a",
    ".a",
    "é",
    "a\x00",
    "a" * 300,
    "plan",
    "a%2fb",
    "𝔞",
    "a\u0301",
)


def numbers() -> st.SearchStrategy[Any]:
    return st.sampled_from(NUMBERS) | st.integers() | st.floats() | st.booleans()


def texts() -> st.SearchStrategy[str]:
    return st.sampled_from(TEXTS) | st.sampled_from(NAMES) | st.text(max_size=20)


def scalars() -> st.SearchStrategy[Any]:
    return st.none() | numbers() | texts()


def values() -> st.SearchStrategy[Any]:
    """Plain data of any kind, not only of the kind that is wanted."""
    small = st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
        max_leaves=5,
    )
    return scalars() | small


def paths(data: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every part of plain data is, containers included."""
    yield prefix
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, inner in items:
        yield from paths(inner, (*prefix, name))


@st.composite
def mutated(draw: st.DrawFn, content: Any, most: int = 2, leaves: st.SearchStrategy[Any] | None = None) -> Any:
    """Plain data with one or a few parts replaced, removed, or joined by a stranger."""
    changed = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.sampled_from([path for path in paths(changed) if path] or [()]))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        changed = _changed(changed, place, how, draw(leaves or values()), draw(texts()))
    return changed


def _changed(data: Any, place: tuple[Any, ...], how: str, value: Any, name: str) -> Any:
    if not place:
        return value
    part = data
    for step in place[:-1]:
        part = part[step]
    last = place[-1]
    if how == "replace":
        part[last] = value
    elif how == "remove":
        del part[last]
    elif isinstance(part, dict):
        part[name] = value
    else:
        part.append(value)
    return data


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut short, changed in places, prolonged, or that are something else."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "flip", "add", "other", "empty", "splice"]))
    if how == "cut":
        return content[: draw(st.integers(0, max(0, len(content) - 1)))]
    if how == "add":
        return content + draw(st.binary(min_size=1, max_size=40))
    if how == "other":
        return draw(st.binary(max_size=200))
    if how == "empty":
        return b""
    changed = bytearray(content)
    if how == "splice":
        first = draw(st.integers(0, len(content)))
        second = draw(st.integers(first, len(content)))
        return bytes(changed[:first] + draw(st.binary(max_size=20)) + changed[second:])
    for _ in range(draw(st.integers(1, 8))):
        # headers are where readers decide: half of the changes fall there
        last = len(changed) - 1
        place = draw(st.integers(0, min(last, 200)) | st.integers(0, last))
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


YAML_BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nname: *b\n",
    "a: &a {b: *a}\nname: x\n",
    "name: !!python/object/apply:os.system ['touch /tmp/robuq-owned']\n",
    "name: !!python/name:os.system\n",
    "name: !!python/object:experiments.plan.Plan {}\n",
    "name: !!binary aGk=\n",
    "name: !!set {a, b}\n",
    "name: !!timestamp 2001-12-14\n",
    "!!python/tuple [1]\n",
    "name: x\nname: y\n",
    "name: x\nbase: {train.steps: 1, train.steps: 2}\n",
    "name: x\n1: 2\n",
    "name: x\n? [a]\n: b\n",
    "? {a: b}\n",
    "name: x\n<<: {preset: nano}\n",
    "name: x\n--- \nname: y\n",
    "%YAML 1.1\n%TAG ! tag:yaml.org,2002:\n---\nname: !str x\n",
    "[" * 5000,
    "[" * 31 + "]" * 31,
    "{a: " * 2000,
    "- " * 3000,
    "name: " + "[" * 200 + "]" * 200,
    "name: " + "9" * 5000 + "\n",
    "name: 1e" + "9" * 50 + "\n",
    "name: x\nseeds: [" + "1," * 20000 + "]\n",
    "name: x\n" + "".join(f"k{i}: 1\n" for i in range(5000)),
    "a" * 199_999,
    "x" * 200_001,
    "'" + "a" * 1000,
    '"\\x00\\uD800"',
    '"\\ud800": 1',
    'name: "a\\x1b[2Jb"\n',
    "\t- a\n",
    "name: [a\nb: c\n",
    "a:\n\t b\n",
    "--- >\n" + " \n" * 5000,
    "#" * 100_000,
    "\ufeffname: x\n",
    "name: x\ngrid: {variant: [minmax], act_bits: " + str(list(range(1, 9))) + ", seeds: 1}\n",
    "null",
    "~",
    "- a\n- b\n",
    "42",
)


def documents() -> st.SearchStrategy[bytes]:
    """YAML as bytes: bombs, bits of syntax in any order, and noise."""
    tokens = st.sampled_from(
        [
            "name",
            ": ",
            "\n",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "  ",
            "&a ",
            "*a",
            "!!str ",
            "!x ",
            "|\n",
            ">-\n",
            "'",
            '"',
            "#",
            "%",
            "@",
            "? ",
            "<<",
            "~",
            "1e5",
            "nan",
            ".inf",
            "\t",
            "---",
            "...",
            "grid",
            "seeds",
            "x",
            "é",
            "\\",
            "`",
        ]
    )
    soup = st.lists(tokens, max_size=25).map("".join).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return (
        st.sampled_from(YAML_BOMBS).map(lambda text: text.encode("utf-8", "surrogatepass"))
        | soup
        | st.binary(max_size=60)
    )
