"""Values of options that contradict others, or name nothing: one line each, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from robuq.config import ConfigError

OF_RAY = ("workers", "address", "cpus_per_run", "gpus_per_run")  # parameters without a meaning for one process


def parsed_folder(value: str | Path) -> Path:
    """Of --output. An empty one would be the working directory."""
    if str(value) == "":
        raise typer.BadParameter("it is empty: name a folder, . for this one")
    return Path(value)


def parsed_file(value: str | Path) -> Path:
    if str(value) == "":
        raise typer.BadParameter("it is empty: name a file")
    return Path(value)


def not_empty(value: str | None) -> str | None:
    if value == "":
        raise typer.BadParameter("it is empty: give a value, or leave the option out")
    return value


def none_empty(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        not_empty(value)
    return values


def device_name(value: str) -> str:
    """Raises ConfigError: no machine has such a device."""
    from experiments.executors import check_device_name

    check_device_name(value)
    return value


def cluster_address(context: typer.Context, executor: str, address: str | None) -> str | None:
    """Of the cluster that is to be used. The environment's means nothing to the local executor.

    Raises:
        ConfigError: options of Ray beside the local executor, or an address that is none.
    """
    from experiments.executors import check_address_form

    if executor == "local":
        for name in OF_RAY:
            if is_given(context, name):
                raise ConfigError(f"--{name.replace('_', '-')} is for --executor ray: leave one of the two out")
        return None
    if address is not None:
        check_address_form(address)
    return address


def check_workers(device: str, cluster: str | None) -> None:
    """Before anything is written. The machines of a cluster have devices of their own.

    Raises:
        ConfigError: PyTorch sees no such device here, or no cluster is at the address.
    """
    from experiments.executors import check_address, check_device

    if cluster is None:
        check_device(device)
    else:
        check_address(cluster)


def check_said_once(context: typer.Context, settings: Sequence[str] | None, options: Mapping[str, str]) -> None:
    """`options`: of each option's parameter, the setting that says the same.

    Raises:
        ConfigError: both were given, on the command line.
    """
    from experiments.overrides import parse_settings

    given = parse_settings(list(settings or ()))
    for name, setting in options.items():
        if setting in given and is_given(context, name):
            option = next(one for one in context.command.params if one.name == name)
            shown = next((text for text in option.opts if text.startswith("--")), name.upper())
            raise ConfigError(f"{shown} and --set {setting} say the same: leave one of the two out")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the parameter is on the command line, and not from the environment or by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
