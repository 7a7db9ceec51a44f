"""Learning from rated triplets: a head on the vectors of an index."""
