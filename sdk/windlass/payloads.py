"""What goes to a model and comes back, as the user's own types: numpy, torch, PIL, pandas, dict, list, str. Sends nothing.

    request = payloads.encode(pixels, signature=signature)             # -> Payload(body, content_type, form)
    output = payloads.decode(raw, "application/json", request.form, signature)

With the model's signature, a wrong input is refused here, in the words in which the model server would: which input, what came,
what was expected. One example without its batch dimension, an image, say, is sent as a batch of one; an array is cast to the
signature's dtype where that changes no value.

| in | goes out as | comes back as |
|---|---|---|
| dict, list, number, str | JSON | Python values |
| numpy array | NPY | arrays, of the signature's dtypes |
| torch tensor | NPY | tensors |
| PIL image | NPY with a signature, else PNG | arrays |
| pandas DataFrame, Series | by the signature's names; else CSV without a header | a DataFrame |
| dict of arrays, tensors or columns | NPZ where the signature lists it, else JSON | as its values |
| bytes | as they are, with ``content_type`` | by the answer's content type |
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from windlass.errors import DeploymentFailed, InvalidInput, MissingExtra
from windlass.runtime import codecs
from windlass.runtime.codecs import arrays as readers
from windlass.runtime.codecs.typed import shape_text, typed

if TYPE_CHECKING:
    from windlass.artifact import Signature, Tensor

Form = Literal["plain", "numpy", "torch", "pandas"]

JSON, CSV, NPY, NPZ, PNG = codecs.JSON, codecs.CSV, codecs.NPY, codecs.NPZ, codecs.PNG


@dataclass(frozen=True)
class Payload:
    """A request's body. ``form`` is whose types came, so that the answer can be of the same."""

    body: bytes
    content_type: str
    form: Form


def encode(
    data: Any, content_type: str | None = None, *, signature: Signature | None = None, where: str = "Predicting"
) -> Payload:
    """The body for ``data``.

    Args:
        content_type: of bytes and text as they are; for arrays and JSON values, what to write them as.
        signature: what the model takes, where that is known.

    Raises:
        InvalidInput: it cannot be sent, or is not what the model takes. Says which input, what came and what is expected.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        if content_type is None:
            raise InvalidInput("bytes were given without content_type=", where=where, hint="As in 'application/x-npy'.")
        return Payload(bytes(data), content_type, "plain")
    if isinstance(data, str) and content_type not in (None, JSON):
        return Payload(data.encode(), str(content_type), "plain")
    form = _form(data)
    if form == "pandas" and signature is None and content_type in (None, CSV):
        # Missing values by a name that readers of numbers know; nothing at all they would refuse.
        return Payload(data.to_csv(index=False, header=False, na_rep="nan").encode(), CSV, form)
    if _is_image(data) and signature is None and content_type in (None, PNG):
        stream = io.BytesIO()
        data.save(stream, format="PNG")
        return Payload(stream.getvalue(), PNG, form)
    value = _arrays(data, signature)
    kind = content_type or _usual(value, form, signature)
    if signature is not None and importlib.util.find_spec("numpy"):
        value = _fitting(value, signature.inputs, where, exact=codecs.media_type(kind)[0] in (NPY, NPZ))
    return _written(value, kind, form, data, where)


def _form(data: Any) -> Form:
    values = list(data.values()) if isinstance(data, Mapping) else [data]
    for module, form in (("torch", "torch"), ("pandas", "pandas"), ("numpy", "numpy"), ("PIL", "numpy")):
        # By name, so that nothing is imported to find out that it is not there.
        if any(type(value).__module__.partition(".")[0] == module for value in values):
            return form  # type: ignore[return-value]
    return "numpy" if any(_is_image(value) or hasattr(value, "__array_interface__") for value in values) else "plain"


def _is_image(data: Any) -> bool:
    """Whether it is a PIL image, whose plugins have modules of any name."""
    return any(f"{kind.__module__}.{kind.__name__}" == "PIL.Image.Image" for kind in type(data).__mro__)


def _arrays(data: Any, signature: Signature | None) -> Any:
    """Tensors, images and frames as NumPy arrays; anything else as it is."""
    if isinstance(data, Mapping):
        return {name: _arrays(value, None) for name, value in data.items()}
    if hasattr(data, "detach"):
        return readers.host(data).numpy()
    if _is_image(data):
        import numpy as np

        return np.asarray(data)
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        names = [tensor.name for tensor in signature.inputs] if signature else []
        if names and set(names) <= set(data.columns):
            return {name: _column(data[name]) for name in data.columns}
        return data.to_numpy()
    return _column(data) if hasattr(data, "to_numpy") else data


def _column(series: Any) -> Any:
    """A column of strings as a list: NumPy has no dtype for it."""
    array = series.to_numpy()
    return array.tolist() if array.dtype.kind == "O" else array


def _fitting(value: Any, inputs: Sequence[Tensor], where: str, *, exact: bool) -> Any:
    """The value, checked, with the batch dimension.

    Args:
        exact: it goes out with dtypes of its own, so they must be the signature's; in JSON the numbers decide.
    """
    by_name = isinstance(value, Mapping)
    if by_name or len(inputs) == 1:
        kinds = {tensor.name: tensor for tensor in inputs}
        named = value if by_name else {inputs[0].name: value}
        named = {name: _fitted(item, kinds[name]) if name in kinds else item for name, item in named.items()}
        value = named if by_name else named[inputs[0].name]
    try:
        fitting = typed(value, inputs, exact=exact)
    except codecs.Refused as error:
        hint = f"The model takes {', '.join(f'{t.name}: {t.dtype} {shape_text(t.shape)}' for t in inputs)}."
        raise InvalidInput(str(error), where=where, hint=hint) from error
    if not exact:
        return value  # as it came: the server reads JSON numbers by the signature
    return {inputs[0].name: fitting} if by_name and len(inputs) == 1 else fitting


def _fitted(value: Any, tensor: Tensor) -> Any:
    """With the batch dimension that a single example lacks; arrays in the signature's dtype where no value changes by it."""
    if tensor.shape and isinstance(tensor.shape[0], str) and _depth(value) == len(tensor.shape) - 1:
        value = value[None] if hasattr(value, "ndim") else [value]
    if not _numeric(value) or tensor.dtype in ("str", "object"):
        return value
    import numpy as np

    with np.errstate(all="ignore"):
        cast = value.astype(tensor.dtype)
    return cast if np.array_equal(cast, value, equal_nan=value.dtype.kind in "fc") else value


def _depth(value: Any) -> int:
    if hasattr(value, "ndim"):
        return int(value.ndim)
    depth = 0
    while isinstance(value, list | tuple) and value:
        value, depth = value[0], depth + 1
    return depth


def _usual(value: Any, form: Form, signature: Signature | None) -> str:
    if form == "plain":
        return JSON
    if not isinstance(value, Mapping):
        return NPY if hasattr(value, "dtype") else JSON
    return NPZ if signature and NPZ in signature.content_types and all(map(_numeric, value.values())) else JSON


def _numeric(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufc")


def _written(value: Any, content_type: str, form: Form, data: Any, where: str) -> Payload:
    kind = codecs.media_type(content_type)[0]
    try:
        # Not by the server's own writer, whose remedies are the model's to take.
        if kind not in codecs.OUT or kind == JSON:
            return Payload(json.dumps(value, default=_plain, allow_nan=False).encode(), content_type, form)
        return Payload(codecs.encode(value, kind), content_type, form)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "numpy", "serve", f"Sending {content_type}") from error
    except (TypeError, ValueError, RecursionError, codecs.Refused, codecs.Unwritable) as error:
        hint = "Give JSON values, a NumPy array, a tensor, or bytes with content_type=."
        if "JSON compliant" in str(error):
            hint = f"JSON has no NaN and no infinity: give a NumPy array, or content_type={NPZ!r}."
        raise InvalidInput(f"{type(data).__name__} cannot be sent: {error}", where=where, hint=hint) from error


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays inside dicts and lists as Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


# ------------------------------------------------------------------------------------------------------------- answers


def decode(
    raw: bytes,
    content_type: str,
    form: Form = "plain",
    signature: Signature | None = None,
    where: str = "Predicting",
) -> Any:
    """The answer, by its content type, as the types that the request was made of.

    Raises:
        DeploymentFailed: the body is not what its content type says.
        MissingExtra: it takes a package that is not installed to read it.
    """
    kind = codecs.media_type(content_type)[0] if content_type else ""
    try:
        if kind == JSON:
            value = json.loads(raw)
        elif kind in (NPY, NPZ):
            value = readers.read_npy(raw) if kind == NPY else readers.read_npz(raw)
        else:
            return raw.decode() if kind.startswith("text/") else raw
    except ModuleNotFoundError as error:
        raise MissingExtra("numpy", "serve", f"Reading an {kind.rpartition('-')[2].upper()} answer") from error
    except (ValueError, codecs.Refused) as error:
        raise DeploymentFailed(f"the model's answer is not {kind}: {error}", where=where) from error
    return value if form == "plain" else _as_form(value, form, signature)


def _as_form(value: Any, form: Form, signature: Signature | None) -> Any:
    outputs = {tensor.name: tensor for tensor in signature.outputs} if signature else {}
    if isinstance(value, Mapping):
        arrays = {name: _array(item, outputs.get(name)) for name, item in value.items()}
    else:
        only = next(iter(outputs.values())) if len(outputs) == 1 else None
        arrays = {"": _array(value, only)}
    if form == "pandas":
        import pandas as pd

        whole: Any = arrays if isinstance(value, Mapping) else arrays[""]
        flat = all(getattr(item, "ndim", 0) == 1 for item in arrays.values()) if isinstance(value, Mapping) else True
        same = len({len(item) for item in arrays.values() if hasattr(item, "__len__")}) == 1
        return pd.DataFrame(whole) if flat and same and getattr(arrays.get(""), "ndim", 1) in (1, 2) else whole
    if form == "torch":
        import torch

        arrays = {name: torch.from_numpy(item.copy()) if _numeric(item) else item for name, item in arrays.items()}
    return arrays if isinstance(value, Mapping) else arrays[""]


def _array(value: Any, tensor: Tensor | None) -> Any:
    """A list of numbers as an array, of the signature's dtype where it has one; what is no array stays as it is."""
    if not isinstance(value, list) and not hasattr(value, "dtype"):
        return value
    import numpy as np

    try:
        array = np.asarray(value)
        wanted = np.dtype(tensor.dtype) if tensor else array.dtype
    except (ValueError, TypeError, OverflowError):
        return value
    if array.dtype.kind not in "biufc":
        return value
    # Only where nothing is lost but digits: a model that gives fractions where whole numbers were promised is not hidden.
    return array.astype(wanted) if np.can_cast(array.dtype, wanted, "same_kind") or not array.size else array
