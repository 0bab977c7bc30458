"""What is refused, in OpenAI's form."""

from typing import Any


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        param: the field that is wrong; None: no single one.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = body(status, message, param, code)


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The content of an answer of this status."""
    kinds = {401: 'authentication_error', 429: 'rate_limit_error'}
    kind = kinds.get(status, 'invalid_request_error' if status < 500 else 'server_error')
    return {'error': {'message': message, 'type': kind, 'param': param, 'code': code}}
