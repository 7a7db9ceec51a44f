"""An embedded folder: vectors of pictures in Parquet parts, on a disk or in object storage."""
