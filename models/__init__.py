"""The networks: backbones, pretrained weights, the embedding head. Importing this package needs no torch."""
