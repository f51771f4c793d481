"""`python -m axpo` is the `axpo` command."""

from axpo.cli import main

main()
