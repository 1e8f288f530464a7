"""Which messaging service the agents speak to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from configs.endpoints import BaseUrl
from configs.own_secrets import would_leave
from contracts.errors import ConfigurationError
from contracts.identity import Identifier

EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class MessagingSettings(BaseModel):
    """`workspace` is the application of that name behind the ingress, `messaging_service` the neighbours' service.

    `base_url` is needed for the latter; without it the workspace is the one behind the own ingress. `secret_env` names the
    variable with the secret that the service demands. The own secret goes to the own ingress alone.

    Where the service does not tell whose a channel is, `microdaos` (by channel id) does, else
    `microdao_id`, which is also the only microDAO that an invocation without a channel may name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["workspace", "messaging_service"] = "workspace"
    base_url: BaseUrl | None = None
    secret_env: EnvironmentName | None = None
    microdaos: Annotated[dict[Identifier, Identifier], Field(max_length=100_000)] = {}
    microdao_id: Identifier | None = None

    def microdao_of(self, channel_id: str | None) -> str | None:
        """Returns the configured microDAO of a channel, or of what has none."""
        return (
            self.microdao_id
            if channel_id is None
            else self.microdaos.get(channel_id, self.microdao_id)
        )

    @model_validator(mode="after")
    def _somewhere(self) -> MessagingSettings:
        if self.kind == "messaging_service" and self.base_url is None:
            msg = "base_url: required for `messaging_service`"
            raise ValueError(msg)
        return self

    def place(
        self, ingress_url: str, own_secret: str | None, lookup: Callable[[str], str | None]
    ) -> tuple[str, str | None]:
        """Returns base URL and secret; `lookup` reads a variable of the environment.

        Raises:
            ConfigurationError: the environment does not have the secret that `secret_env` names, or it opens this graph.
        """
        if self.secret_env is not None:
            secret = lookup(self.secret_env)
            if secret is None:
                raise ConfigurationError(
                    f"messaging.secret_env: the environment has no {self.secret_env}"
                )
            url = self.base_url or ingress_url
            if would_leave(secret, url, ingress_url, lookup):
                raise ConfigurationError(
                    f"messaging.secret_env: {self.secret_env} opens this graph: give the messaging-service its own"
                )
            return url, secret
        return (ingress_url, own_secret) if self.base_url is None else (self.base_url, None)
