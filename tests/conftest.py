"""What every test may rely on."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

# Time is measured in tests/bench. On a busy machine an example may take long and be right.
settings.register_profile("skep", deadline=None)
settings.load_profile("skep")
