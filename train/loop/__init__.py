"""The training loop: set up, steps, epochs, distributed ranks, and the finish."""
