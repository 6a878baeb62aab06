"""`python -m stnet` is the command `stnet`."""

import sys

from stnet.command import main

if __name__ == "__main__":
    sys.exit(main())
