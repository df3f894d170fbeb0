"""The one command, `robuq`. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from types import TracebackType

import typer

from experiments.cli_bits import bits_app
from experiments.cli_dashboard import dashboard_app
from experiments.cli_doctor import doctor_app
from experiments.cli_options import FAILED, INTERRUPTED, TERMINATED, USAGE
from experiments.cli_paper import paper_app
from experiments.cli_plans import plans_app
from experiments.cli_runs import runs_app
from experiments.signals import exit_code, handled_signals
from robuq.config import ConfigError
from robuq.messages import one_line, without_secrets
from robuq.stopping import Stopped
from robuq.storage_fault import StorageFault, storage_fault

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""RobuQ: quantized Diffusion Transformers, trained, compared and recorded.

    \b
    Start here:
      robuq plan smoke               what would run, and for how long
      robuq sweep smoke              run it; the same again continues, or adds what is new
      robuq report smoke             tables and figures of what was recorded
      robuq train robuq_uniform      a single run
      robuq allocate --budget 2      each layer's own bits
      robuq search smoke             search for better ones
      robuq paper                    the paper's tables and figures
      robuq dashboard                all of it on pages in a browser
      robuq variants                 the named recipes

    FILE is a plan (or a search) in YAML, or the name of a packaged one. RUN is a run's key, the beginning of one,
    VARIANT/SEED or VARIANT/LABEL/SEED. Everything is written to --output (results/).
    """,
)

app.add_typer(plans_app)
app.add_typer(runs_app)
app.add_typer(bits_app)
app.add_typer(paper_app)
app.add_typer(dashboard_app)
app.add_typer(doctor_app)


def main() -> None:
    """Mistakes of the user end in one line and exit code 2, disks that take no more in one line and exit code 1; other
    exceptions are bugs and keep their traceback."""
    sys.excepthook = _show_bug
    try:
        _quieten_libraries()
        with handled_signals():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False, prog_name="robuq")
    except ConfigError as error:
        code = _complain(str(error))
    except typer.TyperException as error:
        code = _complain(error.format_message())
    except StorageFault as fault:
        code = _complain(f"{fault}; the same command continues where it was", FAILED)
    except OSError as error:
        code = _complain_of_storage(error)
    except Stopped:
        code = exit_code()
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code in (INTERRUPTED, TERMINATED):  # Typer turns Ctrl-C into the first
        print("robuq: interrupted; the same command continues where it was", file=sys.stderr)
    sys.exit(code or 0)


def _complain(message: str, code: int = USAGE) -> int:
    print(f"robuq: {one_line(message)}", file=sys.stderr)
    return code


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback, whose lines may quote an address with a password."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _complain_of_storage(error: OSError) -> int:
    """Of commands that write next to nothing; other errors of the system are bugs."""
    fault = storage_fault(error, Path("the output folder"))
    if fault is None:
        raise error
    return _complain(str(fault), FAILED)


def _quieten_libraries() -> None:
    """diffusers imports torchao if it is there, and both then say at length what of it they cannot use."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
