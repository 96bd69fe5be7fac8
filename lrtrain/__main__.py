"""`python -m lrtrain` is the command `lrtrain`."""

from lrtrain.cli import main

main()
