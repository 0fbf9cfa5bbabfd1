"""The container `packed` (docs/packed.md): a safetensors file of entropy-coded payloads, any of which can be mapped and decoded alone.

    pack_files     whole files, byte for byte           packed_files.py
    PackedWriter   the tensors of a lossy result        packed_writer.py
    open_packed    tensors by name                      packed_reader.py
    restore_packed, verify_packed                       packed_restore.py
"""

from worker.formats.packed_files import Stored, pack_files
from worker.formats.packed_reader import PackedReader, open_packed
from worker.formats.packed_restore import restore_packed, verify_packed
from worker.formats.packed_writer import PackedWriter

PACKED_NAME = "model.packed.safetensors"

__all__ = ["PACKED_NAME", "PackedReader", "PackedWriter", "Stored", "open_packed", "pack_files", "restore_packed", "verify_packed"]
