"""From a training run to one self-describing model file, with proof that it ranks like the original."""
