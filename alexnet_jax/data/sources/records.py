"""Random access to the records of TFRecord and ArrayRecord files."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from alexnet_jax.data import cache, tfrecord
from alexnet_jax.data.sources.source import digest, one_line
from alexnet_jax.data.sources.splits import Rows
from alexnet_jax.errors import UserError


def tfrecords(rows: Sequence[Rows], sizes: Sequence[int]) -> Callable[[int], bytes]:
    """Returns a function from an index to the record's bytes, over TFRecord files.

    Args:
        rows: the records of each file, one file after the other.
        sizes: each file's bytes.

    Raises:
        UserError: a file holds fewer or more records than `rows` says.
    """
    paths = [each.filename for each in rows]
    tables = _record_tables(rows, paths, sizes)
    spans = np.concatenate(
        [table[each.skip : each.skip + each.take] for each, table in zip(rows, tables, strict=True)]
    )
    ends = np.cumsum([each.take for each in rows])

    def record(i: int) -> bytes:
        path = paths[np.searchsorted(ends, i, side="right")]
        offset, length = spans[i].tolist()
        # Opening takes 3 microseconds. A file kept open would count against the process' limit.
        file = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(file, length, offset)
        finally:
            os.close(file)
        if len(data) != length:
            raise OSError(f"{path} ends before byte {offset + length}")
        return data

    return record


def _record_tables(
    rows: Sequence[Rows], paths: Sequence[str], sizes: Sequence[int]
) -> list[np.ndarray]:
    """Returns (offset, length) int64 [records, 2] for each file, kept in the cache folder."""
    counts = [each.examples_in_shard for each in rows]
    times = [os.stat(path).st_mtime_ns for path in paths]
    # The digest is of all files, so that a changed one is read again.
    key = digest([[os.path.realpath(path) for path in paths], sizes, times, counts])
    path = cache.folder() / f"records-{key[:32]}.npz"
    if (kept := cache.read(path)) is not None:
        return np.split(kept[0]["spans"], np.cumsum(counts)[:-1])
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(_record_table, paths, sizes, counts))
    cache.write(path, {"spans": np.concatenate(tables)}, {"files": len(paths)})
    return tables


def _record_table(path: str, size: int, count: int) -> np.ndarray:
    """Finds the `count` records of a TFRecord file of `size` bytes; see `_record_tables`."""
    spans = list(itertools.islice(tfrecord.spans(path), count))
    if len(spans) < count:
        raise UserError(
            f"{path} is truncated or damaged: it holds {len(spans)} whole records of {count};"
            " copy or prepare the data set again"
        )
    if (tfrecord.end(spans[-1]) if spans else 0) != size:
        raise UserError(
            f"{path} holds more than the {count} records that dataset_info.json states;"
            " copy or prepare the data set again"
        )
    return np.array(spans, np.int64).reshape(count, 2)


def array_records(rows: Sequence[Rows]) -> Callable[[int], bytes]:
    """Returns a function from an index to the record's bytes, over ArrayRecord files.

    Raises:
        UserError: a file is damaged, or holds another number of records than `rows` says, or the
            package that reads such files isn't installed.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise UserError(
            f"{rows[0].filename} is an ArrayRecord file: install array-record, or prepare"
            " the data set again with `tfds build --file_format=tfrecord`"
        ) from None
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for each in rows:
        try:
            reader = ArrayRecordReader(each.filename)
            count = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{each.filename} is damaged: {one_line(error)}") from None
        if count != each.examples_in_shard:
            raise UserError(
                f"{each.filename} holds {count} records and dataset_info.json states"
                f" {each.examples_in_shard}; copy or prepare the data set again"
            )
    return ArrayRecordDataSource(list(rows)).__getitem__
