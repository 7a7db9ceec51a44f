"""An embedded folder: vectors of pictures in Parquet parts, on a disk or in object storage.

::

    OUT/embedded.json                   what all parts have in common; written once, checked by every worker
    OUT/model.onnx                      the model
    OUT/listing-0001.parquet            path, size, mtime_ns, label, problem, replaces; a row group is a part
    OUT/skipped/0001-000012.parquet     id, path, reason, kind, size, mtime_ns
    OUT/vectors/0001-000012.parquet     id, path, label, sha256, size, mtime_ns, vector; its presence says: done
    OUT/removed-0002.parquet            ids that the second generation takes out; its presence ends the generation

An id is the number of the part over all generations, times 2^20, plus the place of the picture in the part, from 1.
"""

from .embedded_folder import EmbeddedFolder
from .listing import PartName
from .part import Rows
from .settings import EmbeddedSettings
from .storage import Storage

__all__ = ["EmbeddedFolder", "EmbeddedSettings", "PartName", "Rows", "Storage"]
