"""`python -m landscape_cli` is the command `landscape`."""

from .main import main

main()
