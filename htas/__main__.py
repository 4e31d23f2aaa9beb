"""`python -m htas` is `htas`."""

import sys

from htas.cli import main

if __name__ == "__main__":
    sys.exit(main())
