"""The commands of the Makefile: ``python3 -m tools run|test|python|deploy|tokens|lock|fetch``; ``-h`` says more."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said before anything that an older Python cannot read
    sys.exit(
        "pulsartasks needs Python 3.10 or newer; this is {}.{}. Name another one: `make run PYTHON=python3.12`".format(
            *sys.version_info
        )
    )

from tools import commands

sys.exit(commands.main(sys.argv[1:]))
