"""A command in this process."""

from __future__ import annotations

import sys

import pytest

from experiments import cli


def robuq(*words: object) -> int:
    """The exit code of `robuq words`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["robuq", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code
