from __future__ import annotations

import pickle

import botocore.exceptions
import pytest

from windlass import aws, errors


def client_error(code: str, message: str = "said so", **more: object) -> botocore.exceptions.ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"RequestId": "r-1"}, **more}
    return botocore.exceptions.ClientError(answer, "CreateEndpoint")


@pytest.mark.parametrize(
    ("raised", "kind", "builtin"),
    [
        (client_error("ResourceNotFound"), errors.NotFound, LookupError),
        (client_error("NoSuchBucket"), errors.NotFound, LookupError),
        (client_error("404"), errors.NotFound, LookupError),
        (client_error("ValidationException", 'Could not find endpoint "x".'), errors.NotFound, LookupError),
        (client_error("ValidationException", "Cannot create already existing endpoint"), errors.Conflict, RuntimeError),
        (client_error("ResourceInUse"), errors.Conflict, RuntimeError),
        (client_error("ValidationException", "1 validation error"), errors.Refused, ValueError),
        (client_error("ResourceLimitExceeded"), errors.QuotaExceeded, RuntimeError),
        (client_error("AccessDeniedException"), errors.AccessDenied, PermissionError),
        (client_error("ExpiredToken"), errors.AccessDenied, PermissionError),
        (client_error("ThrottlingException"), errors.Throttled, RuntimeError),
        (client_error("ModelError", OriginalMessage="Traceback: boom"), errors.ModelFailed, RuntimeError),
        (client_error("SomethingNew"), errors.ServiceError, RuntimeError),
        (botocore.exceptions.NoCredentialsError(), errors.AccessDenied, PermissionError),
        (botocore.exceptions.NoRegionError(), errors.InvalidInput, ValueError),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), errors.Unreachable, ConnectionError),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), errors.Unreachable, ConnectionError),
        (botocore.exceptions.ParamValidationError(report="Missing Name"), errors.InvalidInput, ValueError),
    ],
)
def test_botocore_errors_become_ours(raised: Exception, kind: type[Exception], builtin: type[Exception]) -> None:
    with pytest.raises(kind) as caught, aws.errors("Deploying endpoint 'x'"):
        raise raised
    assert type(caught.value) is kind
    assert isinstance(caught.value, builtin)
    assert str(caught.value).startswith("Deploying endpoint 'x': ")
    assert caught.value.__cause__ is raised


def test_a_service_error_keeps_what_support_asks_for() -> None:
    error = aws.translate(client_error("ResourceLimitExceeded"), "Deploying")
    assert (error.code, error.operation, error.request_id) == ("ResourceLimitExceeded", "CreateEndpoint", "r-1")
    assert "quota" in str(error)


def test_a_model_error_says_what_the_model_said() -> None:
    error = aws.translate(client_error("ModelError", OriginalMessage="ValueError: bad pixel"), "Predicting")
    assert "ValueError: bad pixel" in str(error)


def all_errors(kind: type = errors.WindlassError) -> set[type]:
    return {
        kind,
        *(
            leaf
            for child in kind.__subclasses__()
            for leaf in all_errors(child)
            if leaf.__module__ == "windlass.errors"
        ),
    }


@pytest.mark.parametrize("kind", sorted(all_errors(), key=lambda k: k.__name__))
def test_each_error_is_drawn_in_the_docstring_and_pickles(kind: type[errors.WindlassError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    made = kind("moto", "local", "It") if kind is errors.MissingExtra else kind("what", where="where", hint="Do this.")
    again = pickle.loads(pickle.dumps(made))
    assert str(again) == str(made)
    assert type(again) is kind


def test_a_message_says_where_what_and_what_to_do() -> None:
    assert str(errors.InvalidInput("it is 3", where="Reading x", hint="Use 4.")) == "Reading x: it is 3. Use 4."
    assert str(errors.InvalidInput("it is 3")) == "it is 3"
