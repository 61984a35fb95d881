"""``python -m eagle3cli`` is ``eagle3``."""

from eagle3cli.cli.main import entry

entry()
