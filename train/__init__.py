"""Training: triplet sampling, losses, the loop, the PyTorch reference and ``deeprank-train``."""
