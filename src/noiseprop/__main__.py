"""`python -m noiseprop`, which `torchrun -m noiseprop train` starts in every process."""

import sys

from noiseprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
