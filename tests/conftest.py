"""Property tests draw the same examples every time in `make test` and in CI; HYPOTHESIS_PROFILE=random looks for new
ones,
and CELLINTERP_FUZZ=10000 for so many of each property."""
import os

from hypothesis import HealthCheck, settings

MORE = int(os.environ.get("CELLINTERP_FUZZ") or 0)
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile(
    "random", deadline=None, max_examples=MORE or 500, print_blob=True, suppress_health_check=SLOW
)
settings.load_profile("random" if MORE else os.environ.get("HYPOTHESIS_PROFILE", "same"))
