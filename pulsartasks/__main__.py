"""``python -m pulsartasks``: the same as the ``pulsartasks`` command."""

from pulsartasks.cli import main

main(prog_name="pulsartasks")
