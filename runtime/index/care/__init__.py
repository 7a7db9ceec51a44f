"""Looking after an index: checking, repairing, compacting, removing, changing the model."""
