"""The messaging service that the agents use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.endpoints import BaseUrl, would_leave
from contracts.errors import ConfigurationError
from contracts.identity import Identifier
from contracts.shapes import Strict

EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class MessagingSettings(Strict):
    """`kind` is `workspace` (this product's application) or `messaging_service` (the neighbours').

    `base_url` is required for `messaging_service`; without it the workspace behind our own ingress
    is used. `secret_env` names the variable with the service's secret. Our own secret is sent to
    our own ingress only.

    When the service does not report a channel's microDAO, `microdaos` (by channel id) and then
    `microdao_id` apply. An invocation without a channel may name no other than `microdao_id`.
    """

    kind: Literal["workspace", "messaging_service"] = "workspace"
    base_url: BaseUrl | None = None
    secret_env: EnvironmentName | None = None
    microdaos: Annotated[dict[Identifier, Identifier], Field(max_length=100_000)] = {}
    microdao_id: Identifier | None = None

    def microdao_of(self, channel_id: str | None) -> str | None:
        """Returns the configured microDAO of a channel, or of invocations without one."""
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
        self, ingress_url: str, lookup: Callable[[str], str | None]
    ) -> tuple[str, str | None]:
        """Returns base URL and the service's secret; `lookup` reads a variable of the environment.

        Raises:
            ConfigurationError: the environment lacks the variable `secret_env`, or its secret would
                give the service access to this graph.
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
                    f"messaging.secret_env: {self.secret_env} holds a secret of this graph: "
                    "give the messaging-service its own"
                )
            return url, secret
        return self.base_url or ingress_url, None
