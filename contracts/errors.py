"""The error tree: every failure a caller can see is one leaf of it.

    DaarionError
    ├── InvalidRequest               400  the caller must change the request
    │   ├── ContextLengthExceeded    400
    │   ├── ContentFiltered          400
    │   └── UpstreamRejected         400  the provider refused this very request
    ├── Unauthorized                 401
    │   └── CredentialExpired        401  it was valid: the caller needs a new one
    ├── Forbidden                    403
    │   └── PolicyUnavailable        403  the outside policy service gave no decision
    ├── NotFound                     404
    │   └── UnknownModel             404
    ├── MethodNotAllowed             405
    ├── RequestTimeout               408  the client sent its request too slowly
    ├── Conflict                     409
    │   └── IdempotencyConflict      409
    ├── PayloadTooLarge              413
    ├── UnsupportedMediaType         415
    ├── MisdirectedRequest           421  the `Host` is not one that this ingress answers for
    ├── RateLimited                  429  our own limit
    │   └── OverLimit                429  more than the whole limit: a retry does not help
    ├── UpstreamError                502
    │   ├── UpstreamAuthFailed       502  the provider refused our credentials
    │   ├── UpstreamMisconfigured    502  the provider does not know the model or the route
    │   ├── UpstreamInvalidResponse  502  garbage, truncated or oversized
    │   ├── UpstreamUnavailable      502  connect error, 5xx, reset
    │   ├── UpstreamRateLimited      503  the provider throttles us
    │   └── CircuitOpen              503  every target failed lately: none is tried for a while
    ├── Unavailable                  503  a part of this product cannot be reached
    │   ├── DatabaseUnavailable      503
    │   ├── EngineUnavailable        503
    │   │   └── ModelAsleep          503  it wakes now, and its calls do not go elsewhere
    │   ├── LimitsUnavailable        503
    │   ├── Unreachable              503  no connection to a service: nothing was sent
    │   ├── ModelUnavailable         503  not configured: a retry does not help
    │   └── Overloaded               503  a bounded queue is full
    ├── DeadlineExceeded             504
    │   └── UpstreamTimeout          504
    ├── Internal                     500
    └── ConfigurationError           (start-up only)

A leaf carries the HTTP `status`, a stable `type` and whether a retry can help. Messages say what to
change and hold no key, URL, path, SQL or traceback. Leaves can be pickled: they cross Ray handles.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DaarionError(Exception):
    """Root of the tree.

    `details` are JSON values shown to the caller; `retry_after_s` becomes the header `Retry-After`,
    in seconds.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details, self.retry_after_s))

    def envelope(self, request_id: str) -> dict[str, Any]:
        """Returns the one error body of the HTTP surface: `{"error": {…}}`."""
        body: dict[str, Any] = {
            "type": self.type,
            "message": self.message,
            "retryable": self.retryable,
            "request_id": request_id,
        }
        if self.details:
            body["details"] = self.details
        return {"error": body}


def is_retryable(error: BaseException) -> bool:
    """Whether repeating what raised it may succeed."""
    return isinstance(error, DaarionError) and error.retryable


def _rebuild(
    cls: type[DaarionError],
    message: str,
    details: dict[str, Any] | None,
    retry_after_s: float | None,
) -> DaarionError:
    return cls(message, details=details, retry_after_s=retry_after_s)


class InvalidRequest(DaarionError):
    """The request is malformed or asks for the impossible."""

    status = 400
    type = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested completion do not fit the model's context."""

    type = "context_length_exceeded"


class ContentFiltered(InvalidRequest):
    """The provider's content policy refused the request."""

    type = "content_filtered"


class UpstreamRejected(InvalidRequest):
    """The provider refused this request as invalid."""

    type = "upstream_rejected"


class Unauthorized(DaarionError):
    """No valid credential was presented."""

    status = 401
    type = "unauthorized"


class CredentialExpired(Unauthorized):
    """The credential was valid, and has expired."""

    type = "credential_expired"


class Forbidden(DaarionError):
    """The credential is valid but not sufficient for this route."""

    status = 403
    type = "forbidden"


class PolicyUnavailable(Forbidden):
    """The outside policy service gave no decision, and what it does not permit is denied."""

    type = "policy_unavailable"
    retryable = True


class NotFound(DaarionError):
    """No such route or object."""

    status = 404
    type = "not_found"


class UnknownModel(NotFound):
    """The logical model is not in the routing table."""

    type = "model_not_found"


class MethodNotAllowed(DaarionError):
    """The route exists, the method does not."""

    status = 405
    type = "method_not_allowed"


class RequestTimeout(DaarionError):
    """The request did not arrive in time."""

    status = 408
    type = "request_timeout"
    retryable = True


class Conflict(DaarionError):
    """The same id or key was used for something else."""

    status = 409
    type = "conflict"


class IdempotencyConflict(Conflict):
    """An Idempotency-Key was used for another request."""

    type = "idempotency_conflict"


class PayloadTooLarge(DaarionError):
    """The body exceeds the documented bound."""

    status = 413
    type = "payload_too_large"


class UnsupportedMediaType(DaarionError):
    """The route does not accept the body's content type."""

    status = 415
    type = "unsupported_media_type"


class MisdirectedRequest(DaarionError):
    """The request names a host that this ingress does not serve."""

    status = 421
    type = "misdirected_request"


class RateLimited(DaarionError):
    """A configured limit of ours is exhausted."""

    status = 429
    type = "rate_limited"
    retryable = True


class OverLimit(RateLimited):
    """The request alone needs more than a whole configured limit."""

    type = "over_limit"
    retryable = False


class UpstreamError(DaarionError):
    """A provider failed."""

    status = 502
    type = "upstream_error"
    retryable = True


class UpstreamAuthFailed(UpstreamError):
    """The provider refused the configured credentials."""

    type = "upstream_auth_failed"
    retryable = False


class UpstreamMisconfigured(UpstreamError):
    """The provider does not know the configured model or route."""

    type = "upstream_misconfigured"
    retryable = False


class UpstreamInvalidResponse(UpstreamError):
    """The provider answered garbage, or its answer was cut off.

    `begun`: part of an answer had arrived, which the provider charges for. Pickling loses it.
    """

    type = "upstream_invalid_response"
    begun: bool = False


class UpstreamUnavailable(UpstreamError):
    """The provider could not be reached, or answered 5xx."""

    type = "upstream_unavailable"


class UpstreamRateLimited(UpstreamError):
    """The provider throttles us."""

    status = 503
    type = "upstream_rate_limited"


class CircuitOpen(UpstreamError):
    """Every target of the model failed lately, and none is tried for a while."""

    status = 503
    type = "circuit_open"


class Unavailable(DaarionError):
    """A part of this product cannot be reached; it recovers by itself."""

    status = 503
    type = "unavailable"
    retryable = True


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached."""

    type = "database_unavailable"


class EngineUnavailable(Unavailable):
    """The local model engine is starting or gone."""

    type = "engine_unavailable"


class ModelAsleep(EngineUnavailable):
    """The local model sleeps and is being woken; it is configured to refuse calls meanwhile."""

    type = "model_asleep"


class LimitsUnavailable(Unavailable):
    """The limit authority cannot be reached, so nothing is admitted."""

    type = "limits_unavailable"


class Unreachable(Unavailable):
    """No connection to a service could be made: nothing was sent."""

    type = "unreachable"


class ModelUnavailable(Unavailable):
    """The model exists but its provider is not configured."""

    type = "model_unavailable"
    retryable = False


class Overloaded(Unavailable):
    """A bounded queue is full."""

    type = "overloaded"


class DeadlineExceeded(DaarionError):
    """The request's deadline passed."""

    status = 504
    type = "deadline_exceeded"
    retryable = True


class UpstreamTimeout(DeadlineExceeded):
    """The provider did not answer in time."""

    type = "upstream_timeout"


class Internal(DaarionError):
    """A defect of ours; the log has the traceback under the request id."""


class ConfigurationError(DaarionError):
    """A configuration file or environment variable is wrong: names file, key and reason.

    Raised at start only.
    """

    type = "configuration_error"
