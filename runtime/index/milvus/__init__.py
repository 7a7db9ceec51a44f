"""An index in Milvus: loaded from parts or from an index folder, and searched."""
