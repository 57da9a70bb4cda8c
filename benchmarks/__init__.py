"""How fast the operations are, against whom, and what their kernels need of a card. `results/README.md` says how.

A checkout that is not installed works too: `kernels/` lies beside the package there, and is found from here.
"""

import importlib.util
from pathlib import Path

import gwsss_fast

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

if importlib.util.find_spec("gwsss_fast.kernels") is None:
    gwsss_fast.__path__.append(str(ROOT))
