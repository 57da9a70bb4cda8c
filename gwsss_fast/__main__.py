"""`python -m gwsss_fast VERB`."""

import sys

from gwsss_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
