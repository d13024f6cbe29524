"""``python -m vitkit``."""

from vitkit.cli.main import main

main()
