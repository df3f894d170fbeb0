"""Addresses of servers and databases, as people write them: what is wrong with one, in words that show no secret of it.

What is let through here is taken apart later by urllib and SQLAlchemy, whose complaints quote parts of an address, a
password among them; so it is taken apart here as they do it, and they have nothing to complain of. Free of torch, and
of all that connects.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from robuq.messages import is_plain_place, redacted

SERVERS = ("http", "https")
TRACKING = (*SERVERS, "sqlite", "postgresql", "mysql", "mssql")  # what MLflow takes
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_ODD = re.compile(r"[\s'\"<>|]")
_DATABASE_USER = re.compile(r"(?:[^:/]*(?::[^@]*)?@)?")  # SQLAlchemy's
_IN_MEMORY = re.compile(r"[?&](?:mode=memory|vfs=memdb)(?:&|$)")
_FORM = "this is not [USER:PASSWORD@]HOST[:PORT]/...; in a password, @ : / ? # are written %40 %3A %2F %3F %23"
_FILE_FORM = "three slashes begin a file's address, and its whole path begins with one more: sqlite:////FOLDER/FILE.db"
_NO_ADDRESS = "this is no address: one begins with http://, sqlite:/// or postgresql://, for example"
_FILE = "use sqlite:////FOLDER/FILE.db"
_INSTEAD = f"{_FILE} or postgresql://HOST/NAME"


def address_fault(uri: str) -> str | None:
    """What is wrong with the form of an address, in one line; None: nothing."""
    scheme, mark, rest = uri.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        return _NO_ADDRESS  # of which nothing is shown: nothing tells a name from a password
    shown = redacted(uri)
    if _ODD.search(rest.partition("?")[2] if rest.startswith("/") else rest) or not uri.isprintable():
        return f"{shown}: this holds a character that an address cannot have: write a space as %20"
    if _has_form(scheme, rest):
        return None
    return f"{shown}: {_FILE_FORM if _kind(scheme) == 'sqlite' else _FORM}"


def tracking_fault(uri: str) -> str | None:
    """What is wrong with an address for MLflow, in one line; None: nothing."""
    scheme, mark, _ = uri.partition("://")
    if mark and _SCHEME.fullmatch(scheme) and _kind(scheme) not in TRACKING:
        return f"{redacted(uri)}: {scheme} is none of {', '.join(TRACKING)}"
    if fault := address_fault(uri):
        return fault
    return f"{redacted(uri)}: records in memory go with the command: {_INSTEAD}" if _is_in_memory(uri) else None


def study_fault(uri: str) -> str | None:
    """What is wrong with an address for a search's study, in one line; None: nothing. A relative file would be another
    in another folder, where the same command would begin the search anew."""
    if fault := address_fault(uri):
        return f"this is no address of a database: {_INSTEAD}, or leave it out" if fault == _NO_ADDRESS else fault
    scheme, _, rest = uri.partition("://")
    if scheme in SERVERS:
        return f"{redacted(uri)}: a study is kept in a database: {_INSTEAD}"
    if _is_in_memory(uri):
        return f"{redacted(uri)}: a study in memory goes with the command: {_INSTEAD}"
    if _kind(scheme) == "sqlite" and not _file(rest).startswith("/"):
        return f"{redacted(uri)}: a relative file would be another in another folder: {_FILE}"
    return None


def _has_form(scheme: str, rest: str) -> bool:
    if scheme in SERVERS:
        return _is_server(f"{scheme}://{rest}")
    if _kind(scheme) == "sqlite":
        return rest[:1] in ("", "/")
    user = _DATABASE_USER.match(rest)
    return is_plain_place(re.split("[/?]", rest[user.end() if user else 0 :])[0])


def _is_server(uri: str) -> bool:
    try:
        place = urlsplit(uri).netloc.rpartition("@")[2]
    except ValueError:  # brackets that do not fit, letters that could be taken for others
        return False
    return is_plain_place(place) and place.partition(":")[0] != ""


def _kind(scheme: str) -> str:
    """Without the driver: `postgresql+psycopg`."""
    return scheme.partition("+")[0]


def _is_in_memory(uri: str) -> bool:
    scheme, _, rest = uri.partition("://")
    return _kind(scheme) == "sqlite" and (_file(rest) in ("", ":memory:") or _IN_MEMORY.search(rest) is not None)


def _file(rest: str) -> str:
    """Of `/FILE`, `//FOLDER/FILE`, `/file:FILE?uri=true`."""
    return rest.partition("?")[0].removeprefix("/").removeprefix("file:")
