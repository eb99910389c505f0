"""Pictures as arrays and back. Needs Pillow.

An input of the signature takes pictures when its last three dimensions are height, width and 1, 3 or 4 channels, or channels
first: grey, RGB or RGBA. Integers are 0 to 255; floating-point numbers are 0 to 1, as torchvision's ``ToTensor`` gives them.
Nothing is resized: a picture of another size is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.runtime.codecs.arrays import as_array
from windlass.runtime.codecs.media import IMAGES, JPEG, JSON, NPY, NPZ, Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from windlass.artifact import Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read(body: bytes, kind: str, inputs: Sequence[Tensor]) -> NDArray[Any]:
    """One picture, as a batch of one where the signature has a batch; without a signature (height, width, 3) of uint8."""
    import numpy as np

    if len(inputs) > 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise Refused(415, f"{kind} carries one picture and this model has the inputs {names}. Send {JSON} or {NPZ}.")
    if not inputs:
        return np.array(opened(body, kind).convert("RGB"))
    tensor, wanted = inputs[0], np.dtype(inputs[0].dtype)
    channels, channels_first = layout(tensor)
    if not channels:
        raise Refused(
            415, f"input {tensor.name!r} takes no pictures: {kind} gives numbers by height, width and channel."
        )
    array = np.array(opened(body, kind).convert(_MODES[channels]))
    if array.ndim == 2:
        array = array[:, :, None]
    if channels_first:
        array = array.transpose(2, 0, 1)
    if wanted.kind == "f":
        array = array.astype(wanted) / wanted.type(255)
    if len(tensor.shape) == 4:
        array = array[None]
    return np.ascontiguousarray(array)


def layout(tensor: Tensor) -> tuple[int, bool]:
    """How many channels a picture has in the tensor, and whether they are its first dimension; 0: it takes none."""
    inner = tensor.shape[-3:]
    if len(tensor.shape) not in (3, 4) or not tensor.dtype.lstrip("<>=|").startswith(("u", "f")):
        return 0, False
    channels_first = inner[0] in _MODES and inner[2] not in _MODES
    channels = inner[0 if channels_first else 2]
    return (int(channels), channels_first) if channels in _MODES else (0, False)


def opened(body: bytes, kind: str | None) -> Any:
    """The picture, decoded by the one codec that its media type names; ``None`` is any of `IMAGES`.

    Raises:
        Refused: 400, it is none; 413, it has more pixels than Pillow holds safe.
    """
    from PIL import Image

    formats = [_format(known) for known in (IMAGES if kind is None else (kind,))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(body), formats=formats)
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, f"the picture has too many pixels: more than {Image.MAX_IMAGE_PIXELS}.") from error
    # Whatever a codec meets in a broken file: struct.error, SyntaxError, zlib.error and more.
    except Exception as error:
        raise Refused(400, f"malformed {kind or 'image'}: the body is no such picture, or is cut off.") from error
    return picture


def _format(kind: str) -> str:
    return kind.partition("/")[2].upper()


def write(value: Any, kind: str) -> bytes:
    """One picture: a Pillow image, or an array (height, width[, channels]) as `read` gives them, also as a batch of one."""
    from PIL import Image

    picture = value if isinstance(value, Image.Image) else Image.fromarray(_pixels(value, kind))
    if kind == JPEG and picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, _format(kind))
    return stream.getvalue()


def writable(tensor: Tensor) -> bool:
    """Whether an output can be one picture."""
    shape, dtype = tensor.shape, tensor.dtype.lstrip("<>=|")
    if len(shape) == 4 and (shape[0] == 1 or isinstance(shape[0], str)):
        shape = shape[1:]
    colours = len(shape) == 3 and (shape[0] in _MODES or shape[2] in _MODES)
    return (len(shape) == 2 or colours) and (dtype in ("uint8", "u1") or dtype.startswith("f"))


def _pixels(value: Any, kind: str) -> NDArray[np.uint8]:
    import numpy as np

    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    array = as_array(value, kind)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in _MODES and array.shape[2] not in _MODES:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _MODES)
    if not fits or not array.size or array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.itemsize > 1):
        raise Refused(406, f"the prediction is no picture, which {kind} needs. Accept {JSON} or {NPY}.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise Refused(406, f"the prediction is no picture: its numbers are not between 0 and 1. Accept {NPY}.")
        array = np.rint(array * 255).astype(np.uint8)
    return np.ascontiguousarray(array)
