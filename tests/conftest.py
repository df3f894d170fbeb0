"""Settings that all tests share."""

import pytest
from hypothesis import HealthCheck, settings

# How fast an example runs says nothing about whether it is right, least of all on a busy machine.
settings.register_profile("robuq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("robuq")

LONG = ("torture", "faults", "dashboards", "security", "experiments", "record")  # folders with files of minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: one that is begun last keeps a single worker busy while the others have nothing to do."""
    items.sort(
        key=lambda item: next((place for place, name in enumerate(LONG) if name in item.nodeid.split("/")), len(LONG))
    )
