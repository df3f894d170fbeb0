"""Optuna's CMA-ES with a state of numbers. Optuna's own is a pickle: whoever writes to a study could run code here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from optuna.samplers import CmaEsSampler
from pydantic import Field

from robuq.config import Config, ConfigError
from robuq.config.base import MOST
from robuq.plain_json import parse_json

REMEDY = "restore the study, or search anew under another name"
Numbers = tuple[float, ...]


class CmaEsState(Config):
    """What one generation of cmaes' CMA or CMAwM leaves to the next; all else follows from the space and the seed."""

    generation: Annotated[int, Field(ge=1, le=MOST)]
    mean: Numbers
    step_size: Annotated[float, Field(gt=0)]
    covariance: Numbers  # the upper triangle, row by row
    step_size_path: Numbers
    covariance_path: Numbers
    stretch: Numbers | None  # CMAwM's diagonal matrix A; None: without a margin


class PlainCmaEsSampler(CmaEsSampler):  # type: ignore[misc]  # optuna's samplers have no types here
    """Draws what `CmaEsSampler` draws. One instance is good for one draw."""

    _kept: CmaEsState | None = None
    _optimizer: Any = None

    def sample_relative(self, *args: Any) -> dict[str, Any]:
        """
        Raises:
            ConfigError: the trials hold something that no search writes.
        """
        try:
            drawn: dict[str, Any] = super().sample_relative(*args)
        except ConfigError:
            raise
        except (AssertionError, KeyError, TypeError, ValueError) as error:  # Optuna takes a study as it is
            raise ConfigError(f"the study's trials do not fit CMA-ES ({type(error).__name__}): {REMEDY}") from error
        return drawn

    def _restore_optimizer(self, completed_trials: Sequence[Any]) -> None:
        """Never: what is kept waits for `_init_optimizer`, which knows the space."""
        parts = (self._parts(trial.system_attrs) for trial in reversed(completed_trials))
        self._kept = next((_parsed(found) for found in parts if found), None)

    def _init_optimizer(self, *args: Any) -> Any:
        stream = self._cma_rng.rng
        before = stream.get_state()
        self._optimizer = super()._init_optimizer(*args)
        if self._kept is not None:
            stream.set_state(before)  # an optimizer that goes on takes no seed
            _put(self._kept, self._optimizer)
        return self._optimizer

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        """Of what is to be kept; it is asked right after the generation was told, and offers a pickle."""
        parts: dict[str, str] = super()._split_optimizer_str(_state_of(self._optimizer).to_json())
        return parts

    def _parts(self, attributes: dict[str, Any]) -> list[Any]:
        """Of the text, in their order."""
        names = [name for name in attributes if name.startswith(self._attr_key_optimizer)]
        return [attributes[name] for name in sorted(names, key=lambda name: (len(name), name))]


def _parsed(parts: Sequence[Any]) -> CmaEsState:
    try:
        return CmaEsState.parse(parse_json("".join(parts)))
    except (TypeError, ValueError) as error:
        raise _strange(str(error)) from None


def _state_of(optimizer: Any) -> CmaEsState:
    core = _core(optimizer)
    return CmaEsState(
        generation=core.generation,
        mean=_numbers(core._mean),
        step_size=float(core._sigma),
        covariance=_numbers(core._C[np.triu_indices(core.dim)]),
        step_size_path=_numbers(core._p_sigma),
        covariance_path=_numbers(core._pc),
        stretch=_numbers(optimizer._A) if hasattr(optimizer, "_A") else None,
    )


def _put(state: CmaEsState, optimizer: Any) -> None:
    """Into an optimizer that is new.

    Raises:
        ConfigError: it is of another space.
    """
    core, size = _core(optimizer), _core(optimizer).dim
    vectors = [state.mean, state.step_size_path, state.covariance_path]
    vectors += [state.stretch] if state.stretch is not None else []
    if {len(vector) for vector in vectors} != {size} or len(state.covariance) != size * (size + 1) // 2:
        raise _strange(f"it is not of {size} parameters")
    if hasattr(optimizer, "_A") != (state.stretch is not None):
        raise _strange("it is of another space")
    upper = np.zeros((size, size))
    upper[np.triu_indices(size)] = state.covariance
    core._g, core._sigma, core._C = state.generation, state.step_size, upper + np.triu(upper, 1).T
    core._mean, core._p_sigma, core._pc = map(np.array, (state.mean, state.step_size_path, state.covariance_path))
    if state.stretch is not None:
        optimizer._A = np.array(state.stretch)


def _core(optimizer: Any) -> Any:
    """cmaes' CMA, which its CMAwM holds."""
    return getattr(optimizer, "_cma", optimizer)


def _numbers(values: Any) -> Numbers:
    return tuple(map(float, values))


def _strange(why: str) -> ConfigError:
    return ConfigError(f"the study's state of CMA-ES is not as a search writes it ({why}): {REMEDY}")
