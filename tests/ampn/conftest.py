"""Values that the tests of AMPN share."""

from __future__ import annotations

import numpy as np
import pytest

from robuq.ampn.table import SensitivityTable
from robuq.config import BLOCK_ROLES, decision_name


@pytest.fixture
def table() -> SensitivityTable:
    """One block, 1, 2 and 8 bits; 8 is the reference."""
    loss = np.outer([3.0, 1.0, 2.0, 5.0], [0.5, 0.125, 0.0])
    return SensitivityTable(
        decisions=tuple(decision_name(0, role) for role in BLOCK_ROLES),
        candidates=(1, 2, 8),
        reference=8,
        warm_up_steps=100,
        num_images=96,
        base_loss=0.1,
        loss=_rows(loss),
        loss_se=_rows(0.1 * loss),
        loss_halves=(_rows(0.9 * loss), _rows(1.1 * loss)),
        output_error=((0.5, 0.1, 1e-5),) * 4,
        second_order=_rows(0.5 * loss),
        seconds={"loss": 1.5},
    )


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)
