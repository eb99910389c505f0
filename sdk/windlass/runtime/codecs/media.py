"""Media types: their names, the Content-Type and the Accept header, and what is refused for their sake."""

from __future__ import annotations

from functools import lru_cache

JSON = "application/json"
JSON_LINES = "application/jsonlines"
CSV = "text/csv"
NPY = "application/x-npy"
NPZ = "application/x-npz"
OCTETS = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
PNG = "image/png"
JPEG = "image/jpeg"
IMAGES = (PNG, JPEG, "image/webp", "image/bmp", "image/gif", "image/tiff")
# What the official toolkits hand to `input_fn` as str
TEXT = (JSON, CSV)
IN = (JSON, JSON_LINES, CSV, NPY, NPZ, OCTETS, ARROW, PARQUET, *IMAGES)
OUT = (JSON, JSON_LINES, CSV, NPY, NPZ, OCTETS, ARROW, PARQUET, PNG, JPEG)

# Other names in use for the same.
_ALIASES = {
    "application/x-jsonlines": JSON_LINES,
    "application/jsonl": JSON_LINES,
    "application/x-ndjson": JSON_LINES,
    "application/vnd.apache.arrow.file": ARROW,  # told from a stream by its first bytes
    "application/x-parquet": PARQUET,
    "image/jpg": JPEG,
}


class Refused(Exception):
    """The request cannot be served as it is. ``status`` is the HTTP status, ``str(error)`` says why."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Unwritable(Exception):
    """The prediction does not fit the response format, for example NaN in JSON."""


def canonical(kind: str) -> str:
    """The name that this package uses: ``"application/x-ndjson"`` -> ``"application/jsonlines"``."""
    return _ALIASES.get(kind, kind)


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
def _ranges(header: str) -> tuple[tuple[str, float], ...]:
    """The media ranges of an Accept header with their weights, as they come (RFC 9110, 12.5.1)."""
    ranges: list[tuple[str, float]] = []
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
        if kind:
            ranges.append((kind.lower(), weight if 0 < weight <= 1 else 0.0))
    return tuple(ranges)


@lru_cache(maxsize=256)
def accepted(header: str) -> tuple[str, ...]:
    """The media ranges of an Accept header, the most wanted first, without those at ``q=0``."""
    return tuple(kind for kind, weight in sorted(_ranges(header), key=lambda pair: -pair[1]) if weight)


@lru_cache(maxsize=256)
def negotiate(header: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """The offered media types that the Accept header takes, the most wanted first; under the name that it has for them.

    Raises:
        Refused: 406, none of them.
    """
    found: list[tuple[float, int, int, str]] = []
    for place, kind in enumerate(offered):
        # The most specific range decides: `text/csv;q=0, */*` takes anything but CSV.
        best: tuple[int, float, int, str] | None = None
        for order, (wanted, weight) in enumerate(_ranges(header)):
            if canonical(wanted) == kind:
                specific = 2
            elif wanted.endswith("/*") and kind.startswith(wanted[:-1]):
                specific = 1
            elif wanted == "*/*":
                specific = 0
            else:
                continue
            if best is None or specific > best[0]:
                best = (specific, weight, order, wanted if specific == 2 else kind)
        if best and best[1]:
            found.append((-best[1], best[2], place, best[3]))
    if not found:
        raise Refused(406, f"cannot answer as {header[:200]!r}. This model answers as: {', '.join(offered)}.")
    return tuple(kind for *_, kind in sorted(found))


def text(body: bytes, content_type: str) -> str:
    """The body as text, by the charset in the content type.

    Raises:
        Refused: 400, the bytes are not in that charset; 415, the charset is unknown.
    """
    kind, charset = media_type(content_type)
    try:
        return body.decode(charset)
    except UnicodeDecodeError as error:
        packed = " It begins as gzip does: say Content-Encoding: gzip." if body.startswith(b"\x1f\x8b") else ""
        reason = f"the {kind} body is not {charset}: {error.reason} at byte {error.start}.{packed}"
        raise Refused(400, reason) from error
    except (LookupError, ValueError) as error:
        raise Refused(415, f"unknown charset {charset[:60]!r}. Send utf-8.") from error
