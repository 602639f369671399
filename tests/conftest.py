"""Property tests draw the same examples every time in `make test` and in CI; HYPOTHESIS_PROFILE=random looks for new ones."""
import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
