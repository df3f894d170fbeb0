"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# How fast an example runs says nothing about whether it is right, least of all on a busy machine.
settings.register_profile("robuq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("robuq")
