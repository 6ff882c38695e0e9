"""The models that several tests share are importable by their name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
