"""`python -m lapa`."""

from lapa.cli import main

main()
