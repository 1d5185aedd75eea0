"""What a request is answered with where it can't be served."""

from __future__ import annotations

from typing import Any

from llmctl.errors import one_line


class HTTPError(Exception):
    """A request that can't be served, and the status that says so."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """param: the field that is to blame. code: a short name of the reason."""
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def document(self) -> dict[str, Any]:
        """The error as OpenAI's clients expect it."""
        return {
            "error": {
                "message": one_line(str(self)),
                "type": ERROR_TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


ERROR_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "service_unavailable",
}
