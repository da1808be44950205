"""`python -m posttrain.cli`, for processes that start others."""

import sys

from posttrain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
