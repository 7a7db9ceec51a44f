"""Backbones, pretrained weights, the embedding head; importing this package needs no torch."""
