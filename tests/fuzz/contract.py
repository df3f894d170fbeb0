"""The contract of bad input, as checks: exactly one clear line and exit code 2, or the one error type in process; no
traceback, and no file of the output folder touched."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import cli
from robuq.config import ConfigError
from robuq.messages import one_line

LONGEST_LINE = 1500  # characters; paths and lists of choices are long
REFUSED, ACCEPTED = "refused", "accepted"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(words: Sequence[object]) -> Ended:
    """`robuq WORDS` in this process.

    Raises:
        AssertionError: it ended by an exception that no one foresaw, where a person would see a traceback.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _argv(["robuq", *map(str, words)]):
        try:
            cli.main()
        except SystemExit as ended:
            return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
        except Exception:  # the contract: there is none
            trace = traceback.format_exc()
    raise AssertionError(f"a traceback:\n{trace}")


@contextlib.contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before


def check_command(words: Sequence[object], folder: Path) -> str:
    """A command that may not touch `folder`, whatever is said of its input: refused well, or accepted."""
    before = contents(folder)
    ended = command(words)
    assert contents(folder) == before, "the folder was changed"
    if ended.code == 0:
        return ACCEPTED
    check_refusal(ended)
    return REFUSED


def check_refusal(ended: Ended) -> None:
    assert ended.code == 2, f"exit code {ended.code}: {ended.err}"
    assert ended.out == "", f"printed beside the error: {ended.out[:200]}"
    assert ended.err.startswith("robuq: "), ended.err[:200]
    assert ended.err.endswith("\n")
    check_line(ended.err.removeprefix("robuq: ").removesuffix("\n"))


def check_line(text: str) -> None:
    """One line, not empty, that a terminal shows as it is written."""
    assert text.strip(), "the message is empty"
    assert len(text) <= LONGEST_LINE, f"{len(text)} characters: {text[:200]}"
    odd = [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert not odd, f"{odd[0]!r} in the message: {text[:200]!r}"
    assert "Traceback" not in text


def check_call(call: Callable[[], Any], *allowed: type[Exception]) -> tuple[str, Any]:
    """A function that reads something untrusted: its value, or ConfigError (or `allowed`) whose text the command line
    could print."""
    try:
        return ACCEPTED, call()
    except (ConfigError, *allowed) as error:
        check_line(one_line(str(error)))
        return REFUSED, None
    except Exception:
        trace = traceback.format_exc()
    raise AssertionError(f"not the documented error:\n{trace}")


def contents(folder: Path) -> dict[str, str]:
    """{path: digest of what it holds}"""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*"))}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
