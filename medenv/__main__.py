"""`python -m medenv`: the command line (`medenv.cli`).

Does not cover: anything else.
"""

import sys

from medenv.cli import main

if __name__ == "__main__":
    sys.exit(main())
