"""Arrays as JSON, JSON Lines, CSV, NPY, NPZ and plain octets, read and written. Nothing here unpickles."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.runtime.codecs.media import CSV, JSON, NPY, NPZ, OCTETS, Refused, Unwritable
from windlass.runtime.codecs.typed import first_line, shape_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from windlass.artifact import Tensor

# An archive of zeros grows a thousandfold. No request needs more than this once unpacked.
MAX_UNPACKED_BYTES = 256 << 20

_NPY_HEADER_BYTES = 10_000  # numpy's own limit: the header is a Python literal, and long ones are slow to parse
_HUGE = re.compile(r"[0-9][eE]\+?[0-9]{3}|[0-9]{309}")
_ROW = re.compile(r"at row (\d+), column (\d+)")
_NPY_DTYPE = re.compile(r"[<>|=]?(b1|[iufc]\d{1,2}|U[1-9]\d{0,6})")

# --- in


def read_json(body: str) -> Any:
    def refuse(constant: str) -> Any:
        raise Refused(400, f"malformed JSON: {constant} is not a JSON value. Send it as {NPY}, {NPZ} or {CSV}.")

    try:
        if not body or body.isspace():
            raise Refused(400, "malformed JSON: the body is empty.")
        value = json.loads(body, parse_constant=refuse, object_pairs_hook=_once)
        # Python reads 1e999 as an infinity, which JSON has not. It takes an exponent, or 309 digits.
        overflown = _HUGE.search(body) is not None and any(True for _ in _non_finite(value, ""))
    except RecursionError as error:
        raise Refused(400, "malformed JSON: nested too deeply.") from error
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python converts
        raise Refused(400, f"malformed JSON: {error}.") from error
    if overflown:
        raise Refused(400, "malformed JSON: a number is larger than 64-bit floating point holds.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose names must differ: of two values for one, JSON does not say which counts (RFC 8259, 4)."""
    named = dict(pairs)
    if len(named) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Refused(400, f"malformed JSON: {twice[:60]!r} comes twice in one object.")
    return named


def read_json_lines(body: str, inputs: Sequence[Tensor]) -> Any:
    """One record a line. With a signature, objects become one list for each input name."""
    records: list[Any] = []
    for number, line in enumerate(body.split("\n"), 1):  # and at nothing else: a string may hold other ends of lines
        if line.strip():
            try:
                records.append(read_json(line))
            except Refused as error:
                raise Refused(400, f"in line {number}: {error}") from error
    if not records:
        raise Refused(400, "malformed JSON Lines: the body is empty.")
    if not inputs or not isinstance(records[0], Mapping):
        return records
    names = list(records[0])
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping) or set(record) != set(names):
            had = ", ".join(map(repr, names))
            raise Refused(400, f"record {number} is not as the first, which has {had}. Each line is one record.")
    return {name: [record[name] for record in records] for name in names}


def read_csv(body: str, inputs: Sequence[Tensor]) -> Any:
    import numpy as np

    if len(inputs) > 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise Refused(415, f"CSV carries one array and this model has the inputs {names}. Send {JSON} or {NPZ}.")
    body = body.removeprefix("\ufeff")  # with which Excel begins its "CSV UTF-8"
    if not body.strip():
        raise Refused(400, "malformed CSV: the body is empty.")
    if inputs and np.dtype(inputs[0].dtype).kind in "UO":
        import csv

        try:
            texts = [row for row in csv.reader(io.StringIO(body), strict=True) if row]
        except csv.Error as error:
            raise Refused(400, f"malformed CSV: {error}.") from error
        single = len(inputs[0].shape) == 1 and all(len(row) == 1 for row in texts)
        return [row[0] for row in texts] if single else texts
    number = np.int64 if inputs and np.dtype(inputs[0].dtype).kind in "iu" else np.float64
    try:
        rows = np.loadtxt(io.StringIO(body), dtype=number, delimiter=",", ndmin=2, comments=None, quotechar='"')
    except (ValueError, OverflowError) as error:
        # After the semicolon numpy tells programmers which of its arguments would help. It counts some rows from 0.
        reason = first_line(error).partition("; use `")[0]
        reason = _ROW.sub(lambda found: f"in row {int(found[1]) + 1}, column {found[2]}", reason)
        raise Refused(400, f"malformed CSV: {reason}.") from error
    if rows.dtype.kind == "f" and "inf" not in body.lower() and np.isinf(rows).any():
        raise Refused(400, "malformed CSV: a number is larger than 64-bit floating point holds.")
    # Without a signature, shapes are those of numpy.genfromtxt, which the official toolkit uses: one row is one dimension.
    if not inputs:
        return np.squeeze(rows)
    return rows.ravel() if len(inputs[0].shape) == 1 and 1 in rows.shape else rows


def read_npy(body: bytes) -> NDArray[Any]:
    """One array of plain numbers or strings (numpy.lib.format versions 1 to 3).

    Read here rather than by `numpy.load`: that allocates what the header claims before it looks for the bytes, and lets
    through whatever its own parsing raises on a hostile header.
    """
    import numpy as np

    begin = {1: 10, 2: 12, 3: 12}.get(body[6] if len(body) > 6 else 0, 0)
    if not body.startswith(b"\x93NUMPY") or not begin or len(body) < begin:
        raise Refused(400, "malformed NPY: the body does not begin as an NPY file of version 1 to 3 does.")
    end = begin + int.from_bytes(body[8:begin], "little")
    if end > min(len(body), _NPY_HEADER_BYTES):
        raise Refused(400, f"malformed NPY: the header claims {end} bytes; {len(body)} came.")
    try:
        header = ast.literal_eval(body[begin:end].decode("latin-1").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise Refused(400, "malformed NPY: the header is no dict of descr, fortran_order and shape.") from error
    if isinstance(descr, str) and "O" in descr:
        raise Refused(400, "the NPY array holds Python objects. Pickles are never loaded: send numbers or strings.")
    try:
        dtype = np.dtype(descr) if isinstance(descr, str) and _NPY_DTYPE.fullmatch(descr) else None
    except TypeError:  # a width that does not exist, for example <f3
        dtype = None
    if dtype is None:
        raise Refused(400, f"the NPY array has dtype {str(descr)[:60]}. Send numbers, booleans or strings.")
    sizes = shape if isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape) else (2**63,)
    # numpy holds 64 dimensions and 63 bits, not counting zeros, in empty arrays as well.
    if len(sizes) > 32 or math.prod(size or 1 for size in sizes) * dtype.itemsize >= 2**63:
        raise Refused(400, f"malformed NPY: the shape is {str(shape)[:60]}.")
    came, expected = len(body) - end, math.prod(shape) * dtype.itemsize
    if came != expected:
        raise Refused(400, f"malformed NPY: shape {str(shape)[:60]} of {dtype} is {expected} bytes, {came} came.")
    array = np.frombuffer(body, dtype, offset=end) if expected else np.empty(0, dtype)
    if dtype.kind == "U" and expected and array.astype(dtype.newbyteorder("=")).view(np.uint32).max() > sys.maxunicode:
        raise Refused(400, "malformed NPY: a string holds what is no character.")
    # A copy, since torch wants memory that it may write, in the machine's byte order.
    return array.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), order="C")


def read_npz(body: bytes) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    left = MAX_UNPACKED_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    unpacked = file.read(left + 1)
                left -= len(unpacked)
                if left < 0:
                    raise Refused(413, f"the NPZ archive unpacks to more than {MAX_UNPACKED_BYTES} bytes.")
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise Refused(400, f"malformed NPZ: {name[:60]!r} is in it twice.")
                try:
                    arrays[name] = read_npy(unpacked)
                except Refused as error:
                    raise Refused(error.status, f"in NPZ member {name!r}: {error}") from error
    # RuntimeError is an encrypted member, NotImplementedError and zlib.error a compression that is unknown or broken.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, OverflowError) as error:
        raise Refused(400, f"malformed NPZ: {first_line(error)}.") from error
    return arrays


def read_octets(body: bytes, inputs: Sequence[Tensor]) -> Any:
    """With a signature the array itself, row after row, least significant byte first; without one the bytes."""
    if not inputs:
        return body
    import numpy as np

    tensor, dtype = inputs[0], np.dtype(inputs[0].dtype)
    unknown = [index for index, size in enumerate(tensor.shape) if isinstance(size, str)]
    if len(inputs) > 1 or len(unknown) > 1 or dtype.kind not in "biufc":
        raise Refused(
            415, f"{OCTETS} carries one array of numbers with at most one open dimension. Send {NPY} or {NPZ}."
        )
    shape = [1 if isinstance(size, str) else size for size in tensor.shape]
    row = math.prod(shape) * dtype.itemsize
    came, fits = len(body), len(body) % row == 0 if unknown and row else len(body) == row
    if not fits:
        expected = f"{row} bytes" if not unknown else f"a multiple of {row} bytes"
        raise Refused(
            400,
            f"input {tensor.name!r}: {came} bytes came, {expected} of {dtype} {shape_text(tensor.shape)} are expected.",
        )
    for index in unknown:
        shape[index] = came // row if row else 0
    if dtype.kind == "b" and came and max(body) > 1:
        raise Refused(400, f"input {tensor.name!r}: a byte other than 0 and 1 came for a bool.")
    little = dtype.newbyteorder("<")
    return np.frombuffer(body, little).reshape(shape).astype(dtype, order="C") if came else np.empty(shape, dtype)


def untyped(value: Any) -> Any:
    """Lists of numbers become an array. Objects, strings and ragged lists stay what they are."""
    if not isinstance(value, list):
        return value
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return value
    return array if array.dtype.kind in "biuf" else value


# --- out


def write_json(value: Any, **style: Any) -> bytes:
    """As `json.dumps` writes it, with the arguments given."""
    try:
        return json.dumps(value, **{"default": plain, "allow_nan": False, **style}).encode()
    except UnicodeEncodeError as error:
        raise Unwritable("the prediction holds half of a surrogate pair, which is no character.") from error
    except RecursionError as error:
        raise Unwritable("the prediction is nested too deeply for JSON, or holds itself.") from error
    except ValueError as error:
        raise Unwritable(_why_not_json(value, error)) from error
    except TypeError as error:
        raise Unwritable(f"the prediction cannot be written as JSON: {error}. Write an output_fn for it.") from error


def _why_not_json(value: Any, error: ValueError) -> str:
    try:
        named = isinstance(value, Mapping)
        outputs = ((f"output {name!r}", item) for name, item in value.items()) if named else [("the prediction", value)]
        for output, item in outputs:
            for path, bad in _non_finite(item, ""):
                where = f"{output} is {bad}{f' at {path}' if path else ''}"
                return f"{where}, which JSON cannot hold. Return finite numbers or None, or accept {NPZ if named else NPY}."
    except RecursionError:
        return "the prediction holds itself, so that JSON would never end."
    return f"the prediction cannot be written as JSON: {error}."


def write_json_lines(value: Any) -> bytes:
    """A line for each row: of an array or list, or of the arrays in a dict, which must be as long as each other."""
    if isinstance(value, Mapping):
        columns = {name: _rows(item) for name, item in value.items()}
        lengths = {-1 if rows is None else len(rows) for rows in columns.values()}
        if len(lengths) == 1 and -1 not in lengths:
            count = lengths.pop()
            return _lines(
                {name: rows[index] for name, rows in columns.items() if rows is not None} for index in range(count)
            )
        return write_json(value) + b"\n"
    rows = _rows(value)
    return _lines([value] if rows is None else rows)


def _lines(records: Iterable[Any]) -> bytes:
    lines: list[bytes] = []
    for record in records:
        try:
            lines.append(write_json(record) + b"\n")
        except Unwritable as error:
            raise Unwritable(f"in line {len(lines) + 1}: {error}") from error
    return b"".join(lines)


def _rows(value: Any) -> Sequence[Any] | None:
    if hasattr(value, "tolist"):
        value = host(value).tolist()
    return value if isinstance(value, list | tuple) else None


def write_octets(value: Any) -> bytes:
    """Bytes as they are; an array row after row, least significant byte first."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    array = as_array(value, OCTETS)
    if array.dtype.kind not in "biufc":
        raise Refused(406, f"the prediction is no array of numbers, which {OCTETS} needs. Accept {JSON}.")
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def plain(value: Any) -> Any:
    """A tensor or array as nested lists: the hook of json.dumps for what it does not know."""
    if hasattr(value, "tolist"):
        return host(value).tolist()
    raise TypeError(f"it holds a value of type {type(value).__name__}")


def host(value: Any) -> Any:
    """A torch tensor as one that NumPy can read (on the CPU, with no gradient, no bfloat16); anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float() if value.dtype == torch.bfloat16 else value
    return value


def _non_finite(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Where NaN and infinities are."""
    if hasattr(value, "tolist"):
        value = host(value).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _non_finite(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{path}[{index}]")


def as_array(value: Any, kind: str) -> NDArray[Any]:
    import numpy as np

    if isinstance(value, Mapping):
        raise Refused(406, f"this model answers with named values, which {kind} cannot hold. Accept {JSON} or {NPZ}.")
    try:
        array = np.asarray(host(value))
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refused(406, f"the prediction is no array, which {kind} needs. Accept {JSON}.") from error
    if array.dtype.kind not in "biufcUS":
        raise Refused(406, f"the prediction is no array of numbers, which {kind} needs. Accept {JSON}.")
    return array


def write_csv(value: Any) -> bytes:
    import numpy as np

    array = as_array(value, CSV)
    if array.ndim > 2:
        raise Refused(
            406, f"a prediction of shape {shape_text(array.shape)} does not fit CSV rows. Accept {JSON} or {NPY}."
        )
    # One value a line for one dimension, as numpy.savetxt does in the official toolkit.
    rows = np.atleast_1d(array)
    stream = io.StringIO()
    if rows.dtype.kind in "US":
        import csv

        csv.writer(stream, lineterminator="\n").writerows(
            rows.tolist() if rows.ndim == 2 else [[v] for v in rows.tolist()]
        )
    else:
        np.savetxt(stream, rows, delimiter=",", fmt="%s")
    return stream.getvalue().encode()


def write_npy(value: Any) -> bytes:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, as_array(value, NPY), allow_pickle=False)
    return stream.getvalue()


def write_npz(value: Any) -> bytes:
    import numpy as np

    named = value if isinstance(value, Mapping) else {"arr_0": value}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # stored: numbers hardly compress, and time does count here
        for name, item in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, as_array(item, NPZ), allow_pickle=False)
    return stream.getvalue()
