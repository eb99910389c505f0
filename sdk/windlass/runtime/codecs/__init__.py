"""Bytes to values and back, by media type, held to the model's signature.

    data = codecs.decode(body, "application/json", signature.inputs)          # -> array, {name: array}, or plain JSON
    body, kind = codecs.respond(prediction, "text/csv;q=0.5, application/*")  # -> bytes, "application/json"

| media type | in | out |
|---|---|---|
| application/json | an array, or an object of arrays by input name | the same |
| application/jsonlines | one record a line: a row, or an object of them by input name | one line a row |
| text/csv | rows of numbers, one array | rows, at most two dimensions |
| application/x-npy | one array | one array |
| application/x-npz | arrays by input name | arrays by output name |
| application/octet-stream | one array of numbers, row after row, least significant byte first | the same |
| application/vnd.apache.arrow.stream, application/vnd.apache.parquet | a column for each input | for each output |
| image/png, image/jpeg, image/webp, image/bmp, image/gif, image/tiff | one picture, see `images` | png and jpeg |

With a signature every array has the dtype and shape that the signature says, or the request is refused with a message that
names the input, what came and what was expected. Nothing here ever unpickles. NumPy is imported by the first array, pyarrow
and Pillow by the first request that needs them; where they are not installed, it is answered 415 or 406, with what is missing.

What a client did wrong raises `Refused` with the HTTP status it deserves; what the model did wrong raises `Unwritable`.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from windlass.runtime.codecs import arrays, fitting
from windlass.runtime.codecs.arrays import MAX_UNPACKED_BYTES, plain, read_json, write_json
from windlass.runtime.codecs.media import (
    ARROW,
    CSV,
    IMAGES,
    IN,
    JPEG,
    JSON,
    JSON_LINES,
    NPY,
    NPZ,
    OCTETS,
    OUT,
    PARQUET,
    PNG,
    TEXT,
    Refused,
    Unwritable,
    accepted,
    canonical,
    media_type,
    negotiate,
    text,
)
from windlass.runtime.codecs.typed import check_dtypes, typed

if TYPE_CHECKING:
    from windlass.artifact import Tensor

_LIBRARIES = {ARROW: "pyarrow", PARQUET: "pyarrow", **dict.fromkeys((*IMAGES, PNG, JPEG), "PIL")}
_EXACT = (NPY, NPZ, OCTETS, ARROW, PARQUET, *IMAGES)


@lru_cache(maxsize=64)
def missing(kind: str) -> str:
    """What to install for a media type; empty where it can be read and written here."""
    library = _LIBRARIES.get(kind)
    if library is None or importlib.util.find_spec(library) is not None:
        return ""
    package = {"PIL": "pillow"}.get(library, library)
    return f"{kind} needs {package}, which is not installed here: add {package} to code/requirements.txt"


def decode(body: bytes | str, content_type: str | None, inputs: Sequence[Tensor] = ()) -> Any:
    """What a request carries, as arrays.

    Args:
        body: the request body; str if it was decoded already.
        content_type: the Content-Type header.
        inputs: the signature's inputs. Empty means that anything well-formed is taken.

    Returns:
        With one input in the signature, its array; with several, a dict of arrays by name. Inputs of strings come as nested
        lists, which is what tokenizers take. With no signature: an array where the body is numbers, else the JSON value; the
        columns of a table by name; plain octets as they are.

    Raises:
        Refused: 415 for another content type, 400 for a malformed body or one that does not fit the signature.
    """
    kind = canonical(media_type(content_type)[0]) if content_type else ""
    if kind not in IN:
        came = (
            f"content type {(content_type or '')[:200]!r} is not supported"
            if kind
            else "the request has no Content-Type"
        )
        kinds = fitting.takes(inputs) if inputs else IN
        raise Refused(415, f"{came}. Send one of {', '.join(kinds)}, or read it in an input_fn.")
    if why := missing(kind):
        raise Refused(415, f"{why}, or send {JSON}.")
    if kind in (JSON, JSON_LINES, CSV):
        content = text(body, content_type or kind) if isinstance(body, bytes) else body
        booleans = kind != CSV and ("true" in content or "false" in content)
        if kind == JSON:
            value = arrays.read_json(content)
        else:
            value = arrays.read_csv(content, inputs) if kind == CSV else arrays.read_json_lines(content, inputs)
    else:
        value, booleans = _read_binary(body.encode() if isinstance(body, str) else body, kind, inputs), False
    if not inputs:
        return arrays.untyped(value)
    return typed(value, inputs, exact=kind in _EXACT, booleans=booleans)


def _read_binary(body: bytes, kind: str, inputs: Sequence[Tensor]) -> Any:
    if kind == NPY:
        return arrays.read_npy(body)
    if kind == NPZ:
        named = arrays.read_npz(body)
        if len(inputs) == 1 and list(named) == ["arr_0"]:  # numpy.savez(file, array) names it so
            return named["arr_0"]
        return named
    if kind == OCTETS:
        return arrays.read_octets(body, inputs)
    if kind in IMAGES:
        from windlass.runtime.codecs import images

        return images.read(body, kind, inputs)
    from windlass.runtime.codecs import tables

    return tables.read(body, kind, inputs)


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body without its Content-Encoding.

    Raises:
        Refused: 415, an encoding other than gzip and identity; 400, it is broken; 413, it unpacks to too much.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip"):
        raise Refused(415, f"content encoding {encoding[:60]!r} is not supported. Send gzip or none.")
    reader = zlib.decompressobj(wbits=31)
    try:
        plain = reader.decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise Refused(400, f"malformed gzip: {error}.") from error
    if reader.unconsumed_tail:
        raise Refused(413, f"the body unpacks to more than {MAX_UNPACKED_BYTES} bytes.")
    if not reader.eof or reader.unused_data:
        raise Refused(400, "malformed gzip: the body is cut off, or goes on after its end.")
    return plain


def respond(value: Any, accept: str) -> tuple[bytes, str]:
    """The prediction in the first media type that the Accept header takes and that it fits, and which that is.

    Raises:
        Unwritable: the value does not fit: NaN in JSON, a type that no format has.
        Refused: 406, it fits none that is accepted.
    """
    refused: Refused | None = None
    for kind in negotiate(accept, OUT):
        try:
            return encode(value, kind), kind
        except Refused as error:
            refused = refused or error
    assert refused
    raise refused


def encode(value: Any, kind: str) -> bytes:
    """The prediction in one of the media types of `OUT`.

    Torch tensors and NumPy arrays, also inside lists and dicts, are written as arrays. JSON is what `json.dumps` writes, as
    the official toolkit does, so that the same model answers the same bytes.

    Raises:
        Unwritable: the value does not fit: NaN in JSON, a type that no format has.
        Refused: 406, this prediction fits another format, but not the one asked for.
    """
    kind = canonical(kind)
    if kind == JSON:
        return arrays.write_json(value)
    if why := missing(kind):
        raise Refused(406, f"{why}, or accept {JSON}.")
    if kind in (PNG, JPEG):
        from windlass.runtime.codecs import images

        return images.write(value, kind)
    if kind in (ARROW, PARQUET):
        from windlass.runtime.codecs import tables

        return tables.write(value, kind)
    writers = {
        JSON_LINES: arrays.write_json_lines,
        CSV: arrays.write_csv,
        NPY: arrays.write_npy,
        NPZ: arrays.write_npz,
        OCTETS: arrays.write_octets,
    }
    return writers[kind](value)


__all__ = [
    "ARROW",
    "CSV",
    "IMAGES",
    "IN",
    "JPEG",
    "JSON",
    "JSON_LINES",
    "NPY",
    "NPZ",
    "OCTETS",
    "OUT",
    "PARQUET",
    "PNG",
    "TEXT",
    "Refused",
    "Unwritable",
    "accepted",
    "check_dtypes",
    "decode",
    "encode",
    "media_type",
    "missing",
    "negotiate",
    "plain",
    "read_json",
    "respond",
    "text",
    "unpacked",
    "write_json",
]
