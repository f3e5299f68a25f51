"""`python -m joulec`."""

import sys

from joulec.cli import main

if __name__ == "__main__":
    sys.exit(main())
