"""Texts for people: one line, shown as it is written, and without the secrets of addresses. Free of torch."""

from __future__ import annotations

import re
import unicodedata

MAX_LINE = 1000  # characters
HIDDEN = "***"
# A scheme, then what may hold a user and a password. A password with a slash, a question mark or a hash in it is
# written wrongly, and given all the same: everything before the last @ is hidden.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s'\"<>|]*)")
_NO_SCHEME = re.compile(r"(?<![\w.:/@-])[\w.+%-]+:(?!//)[^\s'\"<>|@]+@(?=[\w.-]+)")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories: controls, marks of direction, half characters


def redacted(uri: str) -> str:
    """The address without user, password, query and fragment: `postgresql://***@host/name`."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return _NO_SCHEME.sub(f"{HIDDEN}@", uri).partition("?")[0].partition("#")[0]
    return f"{scheme}://{_without_user(rest)}"


def _without_user(rest: str) -> str:
    """What comes after `://`. An address that begins with a slash names a file, and has no user."""
    user, at, place = rest.rpartition("@")
    if rest.startswith("/") or not at:
        user, place = "", rest
    elif set("?#") & set(user) and ":" not in re.split("[?#]", user)[0]:
        user, place = "", rest  # the @ is in the query, and no password is before it
    place = re.split("[?#]", place)[0]
    return f"{HIDDEN}@{place}" if user else place


def without_secrets(text: str) -> str:
    """The text with every address in it redacted."""
    text = _ADDRESS.sub(lambda found: f"{found['scheme']}://{_without_user(found['rest'])}", text)
    return _NO_SCHEME.sub(f"{HIDDEN}@", text)


def shown_as_written(text: str) -> str:
    """The text, for names.

    Raises:
        ValueError: it holds a character that a terminal would not show, or would obey.
    """
    if odd := next((char for char in text if unicodedata.category(char) in _INVISIBLE), None):
        raise ValueError(f"{text!r:.60} holds {odd!r}, which is not shown: leave it out")
    return text


def lines_shown_as_written(text: str) -> str:
    """The same for texts of several lines."""
    shown_as_written("".join(text.split()))
    return text


def one_line(text: str) -> str:
    """The text on one line of at most `MAX_LINE` characters, without secrets; what a terminal would not show, or would
    obey, is written out (`\\x1b`)."""
    line = "".join(map(_visible, " ".join(without_secrets(text).split())))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _INVISIBLE:
        return char
    return char.encode("unicode_escape").decode("ascii")
