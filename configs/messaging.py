"""Which messaging service the agents speak to."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, StringConstraints, field_validator

from configs.environment import Environment
from contracts.errors import ConfigurationError

EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class MessagingSettings(BaseModel):
    """`workspace` is the application of that name behind the ingress, `messaging_service` the neighbours' service.

    `base_url` is needed for the latter; without it the workspace is the one behind the own ingress. `secret_env` names the
    variable with the secret that the service demands; the own ingress gets the own secret.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["workspace", "messaging_service"] = "workspace"
    base_url: Annotated[str, StringConstraints(min_length=1, max_length=2_048)] | None = None
    secret_env: EnvironmentName | None = None

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
            msg = "must be http(s)://host[:port][/path]"
            raise ValueError(msg)
        return value.rstrip("/")

    def place(self, environment: Environment) -> tuple[str, str | None]:
        """Returns base URL and secret.

        Raises:
            ConfigurationError: the neighbours' service without a URL, or a secret that the environment does not have.
        """
        if self.base_url is None and self.kind == "messaging_service":
            raise ConfigurationError("messaging.base_url: needed for kind `messaging_service`")
        if self.secret_env is not None:
            secret = environment.secret(self.secret_env)
            if secret is None:
                raise ConfigurationError(f"messaging.secret_env: the environment has no {self.secret_env}")
            return self.base_url or environment.ingress_url, secret
        if self.base_url is None:
            return environment.ingress_url, environment.internal_secret or environment.admin_secret
        return self.base_url, None
