"""Bytes to values and back, by media type, held to the model's signature.

    data = codecs.decode(body, "application/json", signature.inputs)     # -> array, {name: array}, or plain JSON
    body = codecs.encode(prediction, "application/json")                 # -> bytes
    kind = codecs.negotiate("text/csv;q=0.5, application/*", codecs.OUT) # -> "application/json"

| media type | in | out |
|---|---|---|
| application/json | an array, or an object of arrays by input name | the same |
| text/csv | rows of numbers, one array | rows, at most two dimensions |
| application/x-npy | one array | one array |
| application/x-npz | arrays by input name | arrays by output name |

With a signature every array has the dtype and shape that the signature says, or the request is refused with a message that
names the input, what came and what was expected. Nothing here ever unpickles. NumPy is imported by the first array.

What a client did wrong raises `Refused` with the HTTP status it deserves; what the model did wrong raises `Unwritable`.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from windlass.artifact import Tensor

JSON = "application/json"
CSV = "text/csv"
NPY = "application/x-npy"
NPZ = "application/x-npz"
IN = (JSON, CSV, NPY, NPZ)
OUT = (JSON, CSV, NPY, NPZ)
TEXT = (JSON, CSV)  # what the official toolkits hand to `input_fn` as str

# An archive of zeros grows a thousandfold. No request needs more than this once unpacked.
MAX_UNPACKED_BYTES = 256 << 20

_NPY_HEADER_BYTES = 10_000  # numpy's own limit: the header is a Python literal, and long ones are slow to parse
_NPY_DTYPE = re.compile(r"[<>|=]?(b1|[iufc]\d{1,2}|U[1-9]\d{0,6})")


class Refused(Exception):
    """The request cannot be served as it is. ``status`` is the HTTP status, ``str(error)`` says why."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Unwritable(Exception):
    """The prediction does not fit the response format, for example NaN in JSON."""


# --- media types


@lru_cache(maxsize=256)
def media_type(header: str) -> tuple[str, str]:
    """``"Text/CSV; charset=latin-1"`` -> ``("text/csv", "latin-1")``; the charset is utf-8 unless given."""
    kind, *parameters = header.split(";")
    charset = "utf-8"
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower()
    return kind.strip().lower(), charset


@lru_cache(maxsize=256)
def accepted(header: str) -> tuple[str, ...]:
    """The media ranges of an Accept header, the most wanted first (RFC 9110, 12.5.1), without those at ``q=0``."""
    ranges: list[tuple[float, str]] = []
    for item in header.split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if kind and weight > 0:
            ranges.append((weight, kind.lower()))
    return tuple(kind for _, kind in sorted(ranges, key=lambda pair: -pair[0]))


def negotiate(header: str, offered: Sequence[str]) -> str:
    """The offered media type that the Accept header wants most.

    Raises:
        Refused: 406, none of them.
    """
    for wanted in accepted(header):
        for kind in offered:
            if wanted in (kind, "*/*") or (wanted.endswith("/*") and kind.startswith(wanted[:-1])):
                return kind
    raise Refused(406, f"cannot answer as {header!r}. This model answers as: {', '.join(offered)}.")


def text(body: bytes, content_type: str) -> str:
    """The body as text, by the charset in the content type.

    Raises:
        Refused: 400, the bytes are not in that charset; 415, the charset is unknown.
    """
    kind, charset = media_type(content_type)
    try:
        return body.decode(charset)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the {kind} body is not {charset}: {error.reason} at byte {error.start}.") from error
    except (LookupError, ValueError) as error:
        raise Refused(415, f"unknown charset {charset!r}. Send utf-8.") from error


# --- in


def decode(body: bytes | str, content_type: str | None, inputs: Sequence[Tensor] = ()) -> Any:
    """What a request carries, as arrays.

    Args:
        body: the request body; str if it was decoded already.
        content_type: the Content-Type header.
        inputs: the signature's inputs. Empty means that anything well-formed is taken.

    Returns:
        With one input in the signature, its array; with several, a dict of arrays by name. Inputs of strings come as nested
        lists, which is what tokenizers take. With no signature: an array where the body is numbers, else the JSON value.

    Raises:
        Refused: 415 for another content type, 400 for a malformed body or one that does not fit the signature.
    """
    kind = media_type(content_type)[0] if content_type else ""
    if kind not in IN:
        came = f"content type {content_type!r} is not supported" if kind else "the request has no Content-Type"
        raise Refused(415, f"{came}. Send one of {', '.join(IN)}, or read it in an input_fn.")
    if kind in TEXT:
        body = text(body, content_type or kind) if isinstance(body, bytes) else body
        value = _read_json(body) if kind == JSON else _read_csv(body, inputs)
    else:
        raw = body.encode() if isinstance(body, str) else body
        value = _read_npy(raw) if kind == NPY else _read_npz(raw)
    if not inputs:
        return _untyped(value)
    return _typed(value, inputs, kind)


def _read_json(body: str) -> Any:
    def refuse(constant: str) -> Any:
        raise Refused(400, f"malformed JSON: {constant} is not a JSON value. Send null or leave it out.")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError as error:
        raise Refused(400, "malformed JSON: nested too deeply.") from error
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python converts
        raise Refused(400, f"malformed JSON: {error}.") from error


def _read_csv(body: str, inputs: Sequence[Tensor]) -> Any:
    import numpy as np

    if len(inputs) > 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise Refused(415, f"CSV carries one array and this model has the inputs {names}. Send {JSON} or {NPZ}.")
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
        raise Refused(400, f"malformed CSV: {error}") from error
    # Without a signature, shapes are those of numpy.genfromtxt, which the official toolkit uses: one row is one dimension.
    if not inputs:
        return np.squeeze(rows)
    return rows.ravel() if len(inputs[0].shape) == 1 and 1 in rows.shape else rows


def _read_npy(body: bytes) -> NDArray[Any]:
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


def _read_npz(body: bytes) -> dict[str, NDArray[Any]]:
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
                try:
                    arrays[name] = _read_npy(unpacked)
                except Refused as error:
                    raise Refused(error.status, f"in NPZ member {name!r}: {error}") from error
    # RuntimeError is an encrypted member, NotImplementedError and zlib.error a compression that is unknown or broken.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, OverflowError) as error:
        raise Refused(400, f"malformed NPZ: {_first_line(error)}.") from error
    return arrays


def _untyped(value: Any) -> Any:
    """Lists of numbers become an array. Objects, strings and ragged lists stay what they are."""
    if not isinstance(value, list):
        return value
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return value
    return array if array.dtype.kind in "biuf" else value


def _typed(value: Any, inputs: Sequence[Tensor], kind: str) -> Any:
    if isinstance(value, Mapping):
        by_name: Mapping[str, Any] = value
        if kind == NPZ and len(inputs) == 1 and list(value) == ["arr_0"]:  # numpy.savez(file, array) names it so
            by_name = {inputs[0].name: value["arr_0"]}
    elif len(inputs) == 1:
        by_name = {inputs[0].name: value}
    else:
        names = ", ".join(repr(tensor.name) for tensor in inputs)
        raise Refused(400, f"one array came, but this model has the inputs {names}: send them by name, as JSON or NPZ.")
    known = [tensor.name for tensor in inputs]
    for name in by_name:
        if name not in known:
            from windlass.errors import choices

            raise Refused(400, f"unknown input {name!r}. {choices(str(name), known)}")
    sizes: dict[str, tuple[int, str]] = {}
    arrays: dict[str, Any] = {}
    for tensor in inputs:
        if tensor.name not in by_name:
            came = ", ".join(repr(name) for name in by_name) or "none"
            raise Refused(
                400, f"input {tensor.name!r} is missing. Came: {came}. Expected: {', '.join(map(repr, known))}."
            )
        arrays[tensor.name] = _conform(tensor, by_name[tensor.name], sizes, exact=kind in (NPY, NPZ))
    return arrays[inputs[0].name] if len(inputs) == 1 else arrays


def _conform(tensor: Tensor, value: Any, sizes: dict[str, tuple[int, str]], *, exact: bool) -> Any:
    """The value as the array that the signature promises the model.

    Args:
        sizes: what each named dimension has been so far in this request, and in which input.
        exact: the value came with a dtype of its own (NPY), so that decides; in JSON and CSV the numbers themselves do.
    """
    import numpy as np

    here, wanted = f"input {tensor.name!r}", np.dtype(tensor.dtype)
    expected = f"an array of {tensor.dtype} {_shape(tensor.shape)} is expected"
    if isinstance(value, Mapping):
        raise Refused(400, f"{here}: an object came, {expected}.")
    try:
        array: NDArray[Any] = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise Refused(400, f"{here}: lists of unequal length or depth came, {expected}.") from error
    _check_shape(tensor, array, sizes)
    if array.size == 0 and not exact:
        array = array.astype(wanted)  # an empty list has no kind
    if wanted.kind in "UO":
        texts = np.asarray(value, dtype=object)
        if not all(isinstance(item, str) for item in texts.ravel()):
            raise Refused(400, f"{here}: {_came(value, array)}, strings are expected.")
        return texts.tolist()
    if array.dtype == wanted:
        return array
    if exact:
        if not np.can_cast(array.dtype, wanted, "safe"):
            raise Refused(400, f"{here}: dtype {array.dtype} came, {wanted} is expected.")
        return array.astype(wanted)
    if array.dtype.kind not in _READ_AS.get(wanted.kind, ""):
        raise Refused(400, f"{here}: {_came(value, array)}, {wanted} is expected.")
    return _cast(here, array, wanted)


def _check_shape(tensor: Tensor, array: NDArray[Any], sizes: dict[str, tuple[int, str]]) -> None:
    here = f"input {tensor.name!r}"
    fits = array.ndim == len(tensor.shape) and all(
        isinstance(size, str) or size == came for size, came in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        one = array.ndim == len(tensor.shape) - 1 and isinstance(tensor.shape[0], str)
        hint = f" For a single one, wrap it in a list: {tensor.shape[0]!r} is the first dimension." if one else ""
        raise Refused(400, f"{here}: shape {_shape(array.shape)} came, {_shape(tensor.shape)} is expected.{hint}")
    for size, came in zip(tensor.shape, array.shape, strict=True):
        if isinstance(size, str):
            before, where = sizes.setdefault(size, (came, here))
            if came != before:
                raise Refused(400, f"{here}: dimension {size!r} is {came}, but {before} in {where}.")


def _cast(here: str, array: NDArray[Any], wanted: np.dtype[Any]) -> NDArray[Any]:
    """Numbers of the right kind in the wanted width, if they fit."""
    import numpy as np

    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        for extreme in (int(array.min()), int(array.max())):
            if not limits.min <= extreme <= limits.max:
                at = _position(np.argwhere(array == extreme)[0].tolist())
                raise Refused(400, f"{here}: {extreme}{at} is outside {wanted} ({limits.min} to {limits.max}).")
    with np.errstate(over="ignore"):
        cast: NDArray[Any] = array.astype(wanted)
    if wanted.kind == "f":
        lost = np.isinf(cast) & ~np.isinf(array)
        if lost.any():
            where = np.argwhere(lost)[0].tolist()
            raise Refused(400, f"{here}: {array[tuple(where)]}{_position(where)} is too large for {wanted}.")
    return cast


def _came(value: Any, array: NDArray[Any]) -> str:
    """What of the wrong kind came, with the first item that shows it."""
    name, shows = _KINDS.get(array.dtype.kind, (str(array.dtype), lambda item: True))
    for where in itertools.product(*map(range, array.shape)):
        item = value
        for index in where:
            item = item[index]
        if shows(item):
            return f"{name} came ({str(json.dumps(item, default=str))[:40]}{_position(where)})"
    return f"{name} came"


# Which kinds of JSON number serve for a dtype's kind (numpy.dtype.kind).
_READ_AS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "c": "iufc"}
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "U": ("strings", lambda item: isinstance(item, str)),
    "b": ("booleans", lambda item: True),
    "i": ("whole numbers", lambda item: True),
    "u": ("whole numbers", lambda item: True),
    "f": ("fractions", lambda item: isinstance(item, float)),
    "O": ("values other than 64-bit numbers", lambda item: not isinstance(item, int | float) or abs(item) >= 2**63),
}


def _shape(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _position(where: Sequence[int]) -> str:
    return f" at [{', '.join(map(str, where))}]" if where else ""


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


# --- out


def encode(value: Any, kind: str) -> bytes:
    """The prediction in one of the media types of `OUT`.

    Torch tensors and NumPy arrays, also inside lists and dicts, are written as arrays. JSON is what `json.dumps` writes, as
    the official toolkit does, so that the same model answers the same bytes.

    Raises:
        Unwritable: the value does not fit: NaN in JSON, a type that no format has.
        Refused: 406, this prediction fits another format, but not the one asked for.
    """
    if kind == JSON:
        return _write_json(value)
    if kind == CSV:
        return _write_csv(value)
    return _write_npy(value) if kind == NPY else _write_npz(value)


def _write_json(value: Any) -> bytes:
    try:
        return json.dumps(value, default=_plain, allow_nan=False).encode()
    except RecursionError as error:
        raise Unwritable("the prediction is nested too deeply for JSON, or holds itself.") from error
    except ValueError as error:
        raise Unwritable(_why_not_json(value, error)) from error
    except TypeError as error:
        raise Unwritable(f"the prediction cannot be written as JSON: {error}. Write an output_fn for it.") from error


def _why_not_json(value: Any, error: ValueError) -> str:
    try:
        for path, bad in _non_finite(value, "the prediction"):
            return f"{path} is {bad}, which JSON cannot hold. Return finite numbers, or accept {NPY}."
    except RecursionError:
        return "the prediction holds itself, so that JSON would never end."
    return f"the prediction cannot be written as JSON: {error}."


def _plain(value: Any) -> Any:
    """A tensor or array as nested lists: the hook of json.dumps for what it does not know."""
    if hasattr(value, "tolist"):
        return _host(value).tolist()
    raise TypeError(f"it holds a value of type {type(value).__name__}")


def _host(value: Any) -> Any:
    """A torch tensor as one that NumPy can read (on the CPU, with no gradient, no bfloat16); anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float() if value.dtype == torch.bfloat16 else value
    return value


def _non_finite(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Where NaN and infinities are."""
    if hasattr(value, "tolist"):
        value = _host(value).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _non_finite(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{path}[{index}]")


def _array(value: Any, kind: str) -> NDArray[Any]:
    import numpy as np

    if isinstance(value, Mapping):
        raise Refused(406, f"this model answers with named values, which {kind} cannot hold. Accept {JSON} or {NPZ}.")
    try:
        array = np.asarray(_host(value))
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refused(406, f"the prediction is no array, which {kind} needs. Accept {JSON}.") from error
    if array.dtype.kind not in "biufcUS":
        raise Refused(406, f"the prediction is no array of numbers, which {kind} needs. Accept {JSON}.")
    return array


def _write_csv(value: Any) -> bytes:
    import numpy as np

    array = _array(value, CSV)
    if array.ndim > 2:
        raise Refused(
            406, f"a prediction of shape {_shape(array.shape)} does not fit CSV rows. Accept {JSON} or {NPY}."
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


def _write_npy(value: Any) -> bytes:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, _array(value, NPY), allow_pickle=False)
    return stream.getvalue()


def _write_npz(value: Any) -> bytes:
    import numpy as np

    named = value if isinstance(value, Mapping) else {"arr_0": value}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # stored: numbers hardly compress, and time does count here
        for name, item in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _array(item, NPZ), allow_pickle=False)
    return stream.getvalue()


def check_dtypes(tensors: Sequence[Tensor]) -> None:
    """Find out when the model loads, not in the first request, that a dtype is none of NumPy's.

    Raises:
        ValueError: names the tensor.
    """
    import numpy as np

    for tensor in tensors:
        try:
            np.dtype(tensor.dtype)
        except TypeError as error:
            raise ValueError(
                f"the signature's {tensor.name!r} has dtype {tensor.dtype!r}, which NumPy does not know"
            ) from error
