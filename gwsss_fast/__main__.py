"""`python -m gwsss_fast VERB`."""

import sys

try:
    from gwsss_fast.cli import main
except KeyboardInterrupt:  # imports take seconds
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
