"""`access.yaml`: principals to begin with, and how callers may be known otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.endpoints import BaseUrl, opens_graph
from configs.yaml_files import load_yaml
from contracts.access.keys import KEY_PREFIX, MAX_LIVE_KEYS, Label, key_hash
from contracts.access.principals import Grants, PrincipalName
from contracts.access.settings import AuditSettings, IdentityProviderSettings, QuotaSettings
from contracts.errors import ConfigurationError
from contracts.shapes import Strict

SETTINGS_FILE = "access.yaml"
MIN_KEY_CHARS = 32

BoundSubject = Literal["router.invoke.agent", "tool.request", "tool.submit"]


Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
"""The name of a variable of the environment."""


class FileKey(Strict):
    """A key by its SHA-256, or by the variable that holds it; never the key itself."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    env: Variable | None = None
    label: Label = ""

    @model_validator(mode="after")
    def _one(self) -> FileKey:
        if (self.sha256 is None) == (self.env is None):
            raise ValueError("give `sha256` or `env`")
        return self


class PolicyServiceSettings(Strict):
    """A policy service that is asked as well, before tool calls and invocations of agents.

    A decision is remembered for `cache_s`. If none comes within `timeout_s`, `on_failure` counts.
    `secret_env` names the variable with the secret by which the service knows us, if it wants one.
    """

    url: BaseUrl
    timeout_s: Annotated[float, Field(gt=0, le=30, allow_inf_nan=False)] = 1.0
    cache_s: Annotated[float, Field(ge=0, le=300, allow_inf_nan=False)] = 5.0
    on_failure: Literal["deny", "allow"] = "deny"
    secret_env: Variable | None = None

    def secret(self, lookup: Callable[[str], str | None]) -> str | None:
        """Returns the secret; `lookup` reads a variable of the environment.

        Raises:
            ConfigurationError: the variable is not set, or its secret would open this graph.
        """
        found = None if self.secret_env is None else lookup(self.secret_env)
        if self.secret_env is not None and (found is None or opens_graph(found, lookup)):
            raise ConfigurationError(
                f"{SETTINGS_FILE}: policy_service.secret_env: {self.secret_env} is not set, or "
                "holds a secret of this graph: give the policy service its own"
            )
        return found


class FilePrincipal(Grants):
    """A principal with its keys."""

    keys: Annotated[list[FileKey], Field(max_length=MAX_LIVE_KEYS)] = []


class NatsAccess(Strict):
    """What the message bus is trusted with.

    `subjects` binds a subject to the principal that its messages without a key act as.
    `tool_response`: answers of tools are shown to all listeners of `tool.response`.
    """

    subjects: dict[BoundSubject, PrincipalName | Literal["internal"]] = {}
    tool_response: bool = False


class AccessSettings(Strict):
    """The whole file.

    Principals named here are changed here alone; `/internal/access` makes others, and may give
    these further keys.
    """

    principals: dict[PrincipalName, FilePrincipal] = {}
    audit: AuditSettings = AuditSettings()
    identity_provider: IdentityProviderSettings | None = None
    nats: NatsAccess = NatsAccess()
    policy_service: PolicyServiceSettings | None = None
    quotas: QuotaSettings = QuotaSettings()


FileContents = tuple[Mapping[str, Grants], list[tuple[str, str, bytes]], dict[str, Any]]
"""What the store takes: grants by name, keys as principal, label and hash, other sections."""


def load_access(config_dir: Path) -> AccessSettings:
    """Returns the settings; without a file the defaults. Raises ConfigurationError."""
    file = config_dir / SETTINGS_FILE
    return load_yaml(file, AccessSettings) if file.exists() else AccessSettings()


def contents_of(settings: AccessSettings, lookup: Callable[[str], str | None]) -> FileContents:
    """Returns what is stored of the file; `lookup` reads a variable of the environment.

    Raises:
        ConfigurationError: a variable is not set or holds no key of ours, or one key stands twice.
    """
    principals: dict[str, Grants] = {}
    keys: dict[bytes, tuple[str, str, bytes]] = {}
    for name, principal in settings.principals.items():
        fields = principal.model_dump(exclude={"keys"}, exclude_unset=True)
        principals[name] = Grants.model_validate(fields)
        for key in principal.keys:
            hashed = _hash(name, key, lookup)
            if hashed in keys:
                raise ConfigurationError(
                    f"{SETTINGS_FILE}: principals.{name}.keys: `{keys[hashed][0]}` has the same key"
                )
            keys[hashed] = name, key.label, hashed
    if settings.policy_service is not None:
        settings.policy_service.secret(lookup)
    others = settings.model_dump(mode="json", exclude={"principals"})
    return principals, list(keys.values()), others


def _hash(name: str, key: FileKey, lookup: Callable[[str], str | None]) -> bytes:
    if key.sha256 is not None:
        return bytes.fromhex(key.sha256)
    value = lookup(key.env or "")
    if value is None or len(value) < MIN_KEY_CHARS or not value.startswith(KEY_PREFIX):
        raise ConfigurationError(
            f"{SETTINGS_FILE}: principals.{name}.keys: {key.env} is not set, or holds no key "
            f"`{KEY_PREFIX}…` of {MIN_KEY_CHARS} characters or more: `make key ARGS=new` prints one"
        )
    return key_hash(value.encode())
