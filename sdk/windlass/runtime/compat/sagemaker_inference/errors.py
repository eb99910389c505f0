"""The toolkit's exceptions. The model server answers with the ``status_code`` that one carries."""


class UnsupportedFormatError(Exception):
    """A content type that has no decoder or encoder."""

    def __init__(self, content_type: str) -> None:
        super().__init__(
            f"Content type {content_type} is not supported by this framework. Implement input_fn to read it, or output_fn "
            "to write it."
        )


class BaseInferenceToolkitError(Exception):
    """A failed request, with the status to answer."""

    def __init__(self, status_code: int, message: str, phrase: str) -> None:
        self.status_code, self.message, self.phrase = status_code, message, phrase
        super().__init__(status_code, message, phrase)


class GenericInferenceToolkitError(BaseInferenceToolkitError):
    """The same with defaults."""

    def __init__(self, status_code: int, message: str | None = None, phrase: str | None = None) -> None:
        message = message or "Invalid Request"
        super().__init__(status_code, message, phrase or message)
