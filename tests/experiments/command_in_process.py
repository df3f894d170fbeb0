"""A command of `robuq` in this process, and records as sweeps leave them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from experiments import cli
from robuq.config import RunConfig
from robuq.record.run_record import RunRecord

Robuq = Callable[..., tuple[int, str, str]]
Complaint = Callable[..., str]


def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Robuq:
    """A function of a command's words to (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robuq", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def finished_record(run: RunConfig, plan: str, **more: Any) -> RunRecord:
    """Of a run whose stages are gone."""
    of_run = {"key": run.key(), "variant": run.variant, "label": run.label, "config": run.model_dump(mode="json")}
    fixed = {"act_bits": 2.0, "seed": 0, "pretrain_seed": 0, "status": "finished", "dataset": "digits", "stages": {}}
    return RunRecord(**{"plan": plan, "protocol": "aaaaaaaaaaaa", **of_run, **fixed, **more})
