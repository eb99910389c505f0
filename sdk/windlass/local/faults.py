"""What the local cloud answers when AWS would refuse."""

from __future__ import annotations

from moto.core.exceptions import ServiceException


class Fault(ServiceException):  # type: ignore[misc]
    """An AWS error answer: ``raise Fault("ValidationException", "1 validation error detected: ...")``.

    Args:
        code: AWS's own code, as botocore shows it in ``error.response["Error"]["Code"]``.
        message: AWS's wording where it is known; always names the field or the resource.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)


def not_here(what: str) -> Fault:
    """The refusal of what AWS has and the local cloud does not."""
    return Fault("ValidationException", f"The local cloud does not implement {what}.")
