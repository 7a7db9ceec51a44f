"""``python -m deeprank.train`` is ``deeprank-train``, and so is ``torchrun ... -m deeprank.train``."""

from .cli import main

if __name__ == "__main__":
    main()
