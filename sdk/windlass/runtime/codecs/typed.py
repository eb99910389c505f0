"""Values held to the model's signature: arrays of the dtypes and shapes that it names, or a refusal that says why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.runtime.codecs.media import JSON, Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from windlass.artifact import Tensor


def typed(value: Any, inputs: Sequence[Tensor], *, exact: bool, booleans: bool = False) -> Any:
    """The arrays that the signature promises the model: one, or several by name.

    Args:
        value: an array or nested lists for a model with one input; or those by input name.
        exact: the values came with dtypes of their own (NPY, Arrow), so that these decide; in JSON and CSV the numbers do.

        booleans: nested lists may hold some among the numbers, where NumPy would take them for 0 and 1. To look takes time.

    Raises:
        Refused: 400, with the input, what came and what was expected.
    """
    if isinstance(value, Mapping):
        by_name: Mapping[str, Any] = value
    elif len(inputs) == 1:
        by_name = {inputs[0].name: value}
    else:
        names = ", ".join(repr(tensor.name) for tensor in inputs)
        raise Refused(400, f"one array came, but this model has the inputs {names}: send them by name, as {JSON}, say.")
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
        item = by_name[tensor.name]
        arrays[tensor.name] = _conform(tensor, item, sizes, exact=exact)
        if booleans and isinstance(item, list | tuple):
            _refuse_booleans(tensor, item)
    return arrays[inputs[0].name] if len(inputs) == 1 else arrays


def _conform(tensor: Tensor, value: Any, sizes: dict[str, tuple[int, str]], *, exact: bool) -> Any:
    """The value as the array that the signature promises the model.

    Args:
        sizes: what each named dimension has been so far in this request, and in which input.
        exact: as in `typed`.
    """
    import numpy as np

    here, wanted = f"input {tensor.name!r}", np.dtype(tensor.dtype)
    expected = f"an array of {tensor.dtype} {shape_text(tensor.shape)} is expected"
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
        if any("\ud800" <= letter <= "\udfff" for item in texts.ravel() for letter in item):
            raise Refused(400, f"{here}: a string holds half of a surrogate pair, which is no character.")
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


def _refuse_booleans(tensor: Tensor, value: Any) -> None:
    """Booleans among numbers, which have become numbers in the array."""
    import numpy as np

    wanted = np.dtype(tensor.dtype)
    if wanted.kind in "iufc":
        for where in itertools.product(*map(range, np.shape(value))):
            item = value
            for index in where:
                item = item[index]
            if isinstance(item, bool):
                text = json.dumps(item)
                raise Refused(400, f"input {tensor.name!r}: {text} came{_position(where)}, {wanted} is expected.")


def _check_shape(tensor: Tensor, array: NDArray[Any], sizes: dict[str, tuple[int, str]]) -> None:
    here = f"input {tensor.name!r}"
    fits = array.ndim == len(tensor.shape) and all(
        isinstance(size, str) or size == came for size, came in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        one = array.ndim == len(tensor.shape) - 1 and isinstance(tensor.shape[0], str)
        hint = f" For a single one, wrap it in a list: {tensor.shape[0]!r} is the first dimension." if one else ""
        raise Refused(
            400, f"{here}: shape {shape_text(array.shape)} came, {shape_text(tensor.shape)} is expected.{hint}"
        )
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


def shape_text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _position(where: Sequence[int]) -> str:
    return f" at [{', '.join(map(str, where))}]" if where else ""


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


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
