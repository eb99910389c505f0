"""Bodies to arrays, as the toolkit's `decode`; nothing is unpickled."""

from __future__ import annotations

import json
from typing import Any

from windlass.runtime import codecs

from . import errors


def decode(obj: bytes | str, content_type: str) -> Any:
    """The array that a body of JSON, CSV or NPY holds; of NPZ, arrays by name."""
    if content_type == codecs.JSON:
        import numpy as np

        return np.array(json.loads(obj))
    if content_type not in (codecs.CSV, codecs.NPY, codecs.NPZ):
        raise errors.UnsupportedFormatError(content_type)
    return codecs.decode(obj, content_type)
