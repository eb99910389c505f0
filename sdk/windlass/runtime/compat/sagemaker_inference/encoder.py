"""Arrays to bodies, as the toolkit's `encode`."""

from __future__ import annotations

import json
from typing import Any

from windlass.runtime import codecs

from . import errors

SUPPORTED_CONTENT_TYPES = {codecs.JSON, codecs.CSV, codecs.NPY}


def encode(array_like: Any, content_type: str) -> str | bytes:
    """JSON and CSV as text, NPY as bytes."""
    if content_type not in SUPPORTED_CONTENT_TYPES:
        raise errors.UnsupportedFormatError(content_type)
    if content_type == codecs.JSON:
        return json.dumps(array_like, default=codecs.plain)
    body = codecs.encode(array_like, content_type)
    return body.decode() if content_type == codecs.CSV else body
