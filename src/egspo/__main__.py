"""``python -m egspo``: what ``accelerate launch -m`` and ``torchrun -m`` start."""

from egspo.cli import main

main()
