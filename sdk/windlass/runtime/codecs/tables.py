"""Arrow and Parquet: a column for each input or output, a row for each item of the batch. Needs pyarrow."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.runtime.codecs.arrays import MAX_UNPACKED_BYTES, as_array
from windlass.runtime.codecs.media import JSON, PARQUET, Refused
from windlass.runtime.codecs.typed import first_line

if TYPE_CHECKING:
    from windlass.artifact import Tensor

_ARROW_FILE = b"ARROW1"


def read(body: bytes, kind: str, inputs: Sequence[Tensor]) -> Any:
    """Arrays by column name. Where the model has one input that is no column, the columns together are its rows."""
    import pyarrow as pa

    name = "Parquet" if kind == PARQUET else "Arrow"
    try:
        table = _parquet(body) if kind == PARQUET else _arrow(body)
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        raise Refused(400, f"malformed {name}: {first_line(error)[:200]}.") from error
    if len(set(table.column_names)) != table.num_columns:
        raise Refused(400, f"malformed {name}: two columns have one name: {', '.join(table.column_names)[:200]}.")
    columns = {column: _column(column, table[column].combine_chunks()) for column in table.column_names}
    if len(inputs) == 1 and inputs[0].name not in columns and len(inputs[0].shape) == 2:
        import numpy as np

        try:
            return np.stack([np.asarray(values) for values in columns.values()], axis=1)
        except ValueError as error:
            raise Refused(400, f"input {inputs[0].name!r}: the columns do not make rows of one shape.") from error
    return columns


def _parquet(body: bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(body))
    head = file.metadata
    # A run of equal values takes no room in the file, whatever its length.
    unpacked = sum(head.row_group(index).total_byte_size for index in range(head.num_row_groups))
    claimed = max(unpacked, head.num_rows * head.num_columns)
    if claimed > MAX_UNPACKED_BYTES:
        raise Refused(413, f"the Parquet file unpacks to more than {MAX_UNPACKED_BYTES} bytes.")
    return file.read()


def _arrow(body: bytes) -> Any:
    import pyarrow as pa

    source = pa.BufferReader(body)
    if body.startswith(_ARROW_FILE):
        file = pa.ipc.open_file(source)
        batches, schema = (file.get_batch(index) for index in range(file.num_record_batches)), file.schema
    else:
        stream = pa.ipc.open_stream(source)
        batches, schema = iter(stream), stream.schema
    kept, left = [], MAX_UNPACKED_BYTES
    for batch in batches:
        batch.validate(full=True)  # offsets that point anywhere
        left -= batch.nbytes
        if left < 0:
            raise Refused(413, f"the Arrow data unpacks to more than {MAX_UNPACKED_BYTES} bytes.")
        kept.append(batch)
    return pa.Table.from_batches(kept, schema)


def _column(name: str, values: Any) -> Any:
    """A column as an array: numbers flat, lists of one length as further dimensions, strings as a list."""
    import numpy as np
    import pyarrow as pa

    kind = values.type
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise Refused(400, f"column {name!r} has no value in row {row}. Every value must be there.")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        texts = values.to_pylist()
        if all(isinstance(text, str) for text in texts):
            return texts
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.array(values.to_numpy(zero_copy_only=False))  # a copy, since torch wants memory that it may write
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if not len(values):
            return np.empty((0, 0))
        lengths = set(values.value_lengths().to_pylist())
        if len(lengths) != 1:
            raise Refused(400, f"column {name!r} holds lists of unequal length.")
        inner = _column(name, values.flatten())
        if isinstance(inner, list):
            size = lengths.pop()
            return [inner[start : start + size] for start in range(0, len(inner), size)]
        return inner.reshape((len(values), lengths.pop(), *inner.shape[1:]))
    raise Refused(400, f"column {name!r} has the type {kind}. Send numbers, booleans, strings, or lists of them.")


def write(value: Any, kind: str) -> bytes:
    """The prediction as a table: a dict of arrays by its names, one array as the column ``output``."""
    import pyarrow as pa

    named = value if isinstance(value, Mapping) else {"output": value}
    columns = {str(name): _written(item, kind) for name, item in named.items()}
    if len({len(column) for column in columns.values()}) > 1:
        raise Refused(406, f"the outputs have unequal numbers of rows, which {kind} cannot hold. Accept {JSON}.")
    table = pa.table(columns)
    stream = io.BytesIO()
    if kind == PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(table, stream)
    else:
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    return stream.getvalue()


def _written(value: Any, kind: str) -> Any:
    import numpy as np
    import pyarrow as pa

    array = np.atleast_1d(as_array(value, kind))
    if array.dtype.kind in "SU":
        return pa.array(array.tolist())
    if array.dtype.kind == "c":
        raise Refused(406, f"the prediction holds complex numbers, which {kind} cannot. Accept {JSON}.")
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
