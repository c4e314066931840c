"""``python -m fastgrad``: see `fastgrad.cli.parser`."""

import sys

from fastgrad.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
