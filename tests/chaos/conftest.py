import sys
from pathlib import Path

for _support in ("broker/support", "system/support"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _support))
