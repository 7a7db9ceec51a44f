"""Pictures of a run: splits, loading, cached features, and the network's inputs."""
