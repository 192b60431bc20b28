"""`python -m trainer`: the signal handler comes first, before anything slow is imported."""

import sys

from trainer.signals import STOP

STOP.install()

from trainer.cli import main  # noqa: E402  (the handler must stand before click and torch load)

sys.exit(main())
