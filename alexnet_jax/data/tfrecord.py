"""Reads and writes the framing of TFRecord files: TFDS's shards and TensorBoard's event files.

A record is its length (uint64), the masked CRC-32C of the length (uint32), the bytes, and their
masked CRC-32C (uint32), all little-endian.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tensorboardX.record_writer import masked_crc32c

_HEAD, _TAIL = 12, 4  # So many bytes stand before and after those of a record.


def spans(path: str | Path) -> Iterator[tuple[int, int]]:
    """Hops over the records of a file, up to the first that is cut short.

    Yields:
        The offset of a record's bytes and their number. Checksums are not looked at.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while position + _HEAD + _TAIL <= size:
            (length,) = struct.unpack("<Q", os.pread(file.fileno(), 8, position))
            if position + _HEAD + length + _TAIL > size:
                return
            yield position + _HEAD, length
            position += _HEAD + length + _TAIL


def end(span: tuple[int, int]) -> int:
    """Returns the offset at which the record of a span ends, and the next begins."""
    offset, length = span
    return offset + length + _TAIL


def records(path: str | Path) -> Iterator[bytes | None]:
    """Reads the whole records of a file in order.

    Yields:
        A record's bytes, or None where they and their checksum differ.
    """
    with open(path, "rb") as file:
        for offset, length in spans(path):
            file.seek(offset)
            record, checksum = file.read(length), file.read(_TAIL)
            yield record if checksum == struct.pack("<I", masked_crc32c(record)) else None


def write(file: BinaryIO, record: bytes) -> None:
    """Appends a record to an open file."""
    length = struct.pack("<Q", len(record))
    file.write(length + struct.pack("<I", masked_crc32c(length)))
    file.write(record)
    file.write(struct.pack("<I", masked_crc32c(record)))
