"""`python -m lrdata` is the command `lrdata`."""

from lrdata.cli import main

main()
