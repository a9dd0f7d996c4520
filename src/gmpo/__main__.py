"""`python -m gmpo`."""

from gmpo.cli import main

main()
