"""Texts for people: one line, shown as it is written, and without the secrets of addresses. Free of torch."""

from __future__ import annotations

import re
import unicodedata

MAX_LINE = 1000  # characters
HIDDEN = "***"
# A scheme, then what may hold a user and a password. A password with a slash, a question mark or a hash in it is
# written wrongly, and given all the same: everything before the last @ is hidden.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s'\"<>|]*)")
_AFTER = ".,;:!)}`…"  # of the sentence that an address stands in
_PLAIN_PLACE = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.%~-]*)(?::(?P<port>[0-9]{1,5}))?")
_NO_SCHEME = re.compile(r"(?<![\w.:/@-])[\w.+%-]+:(?!//)[^\s'\"<>|@]+@(?=[\w.-]+)")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories: controls, marks of direction, half characters


def redacted(uri: str) -> str:
    """The address without user, password, query and fragment: `postgresql://***@host/name`; what is no host and no port
    is hidden with all that follows: `postgresql://***`."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return _NO_SCHEME.sub(f"{HIDDEN}@", uri).partition("?")[0].partition("#")[0]
    return f"{scheme}://{_without_user(scheme, rest)}"


def _without_user(scheme: str, rest: str) -> str:
    """What comes after `://`. Where that is no host, it may be a password that was written wrongly, and is hidden."""
    user, place = _user_and_place(scheme, rest)
    place = re.split("[?#]", place)[0]
    host, _, path = place.partition("/")
    if not is_plain_place(host) or (not host and ":" in path and not _names_a_file(scheme)):
        return HIDDEN
    return f"{HIDDEN}@{place}" if user else place


def _user_and_place(scheme: str, rest: str) -> tuple[str, str]:
    """What comes before the @ and what comes after it."""
    user, at, place = rest.rpartition("@")
    if not at or (rest.startswith("/") and _names_a_file(scheme)):
        return "", rest
    if set("?#") & set(user) and ":" not in re.split("[?#]", user)[0]:
        user, _, place = re.split("[?#]", rest)[0].rpartition("@")  # the last @ is in the query
    return user, place


def _names_a_file(scheme: str) -> bool:
    return scheme.lower().partition("+")[0] in ("sqlite", "file")


def is_plain_place(text: str) -> bool:
    """Is it HOST, HOST:PORT, or nothing?"""
    found = _PLAIN_PLACE.fullmatch(text)
    return found is not None and int(found["port"] or 0) < 2**16


def without_secrets(text: str) -> str:
    """The text with every address in it redacted."""
    return _NO_SCHEME.sub(f"{HIDDEN}@", _ADDRESS.sub(_redacted_inside, text))


def _redacted_inside(found: re.Match[str]) -> str:
    rest = found["rest"].rstrip(_AFTER if "[" in found["rest"] else f"{_AFTER}]")
    return f"{found['scheme']}://{_without_user(found['scheme'], rest)}{found['rest'][len(rest) :]}"


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
