"""Who sent a message, and where its answer may go.

NATS does not say who published: a key stands in the message's headers, as in those of a request
over HTTP. A subject that `access.yaml` binds to a principal needs no key; who may publish there is
then a matter of the NATS server's permissions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from configs.access import NatsAccess
from contracts.access.audit import AuditRecord
from contracts.access.keys import CREDENTIAL_HEADERS
from contracts.access.principals import ANYONE, Principal
from contracts.errors import DaarionError, Forbidden, Unauthorized
from interfaces.http.base.access import MAX_CREDENTIALS
from interfaces.http.base.claims import check_body
from interfaces.http.base.errors import invalid_body
from services.access.authentication import Authentication
from services.access.delegations import RENEW_BEFORE_S, Delegations

KEPT_HEADER = "Daarion-Delegation"
INBOXES = "_INBOX.>"
_AUDIENCE = "nats-streams"
_SHOWN_CHARS = 100
Body = TypeVar("Body", bound=BaseModel)

_SUBJECT = re.compile(r"[!-)+-=?-~]{1,256}")  # printable, and no pattern


class Senders:
    """Knows senders as the ingress knows callers, by the same authentication.

    Wrong keys are not slowed down here: a message that is not refused at once would come again.
    """

    def __init__(self, authentication: Authentication) -> None:
        self._authentication = authentication
        self._directory = authentication.directory
        self._audit = authentication.audit
        # What lies in a stream opens nothing but the streams.
        self._kept = Delegations(authentication.directory, _AUDIENCE)

    @property
    def settings(self) -> NatsAccess:
        """The section `nats` of `access.yaml`, as it is now."""
        return self._directory.section("nats", NatsAccess) or NatsAccess()

    def of(self, message: Msg, application: str) -> Principal:
        """Returns the sender.

        Raises:
            Unauthorized: without a valid key, where one is demanded.
            Forbidden: it may not use the application, or was withdrawn.
            Unavailable: keys cannot be checked yet.
        """
        self._directory.applied()  # else no subject would be bound
        headers = message.headers or {}
        presented = _presented(headers)
        bound = self.settings.subjects.get(message.subject)
        if KEPT_HEADER in headers:
            kept = self._kept.read(headers[KEPT_HEADER].encode())
            sender = self._authentication.still_valid(kept)
        elif bound is not None and not presented:
            sender = self._directory.named(bound)
        else:
            sender = self._authentication.principal(presented)
        sender.check_application(application)
        return sender

    def kept(self, sender: Principal, life_s: float) -> dict[str, str]:
        """Returns the header that stands for the sender's key in a stream, for at least `life_s`.

        Raises Unavailable: keys cannot be checked yet.
        """
        return {KEPT_HEADER: self._kept.token(sender, life_s + RENEW_BEFORE_S)}

    def note_refusal(self, message: Msg, error: DaarionError, sender: Principal | None) -> None:
        """Notes in the audit trail a message that is refused for who its sender is."""
        if self._audit is None or not isinstance(error, Unauthorized | Forbidden):
            return
        named = error.details or {}
        self._audit.note(
            AuditRecord(
                principal=(sender or ANYONE).name,
                action="publish" if sender else "login",
                object=message.subject,
                outcome="denied",
                microdao_id=named.get("microdao_id"),
                agent_id=named.get("agent_id"),
            )
        )


def read(message: Msg, model: type[Body], sender: Principal) -> Body:
    """Returns the body of a message.

    Raises:
        InvalidRequest: it is no such body.
        Forbidden: it names an agent, a microDAO or a tool that is not the sender's.
    """
    try:
        body = model.model_validate_json(message.data)
    except ValidationError as error:
        raise invalid_body(error) from None
    check_body(sender, body)
    return body


def may_reply(subject: str, sender: Principal | None) -> bool:
    """Whether an answer may be published there; without a sender, to an inbox alone."""
    granted = [] if sender is None else sender.grants.reply_subjects
    return _SUBJECT.fullmatch(subject) is not None and any(
        _expression(pattern).fullmatch(subject) for pattern in (INBOXES, *granted)
    )


def check_reply(subject: str | None, sender: Principal) -> None:
    """Raises Forbidden that names a reply subject which the sender may not use."""
    if subject and not may_reply(subject, sender):
        raise Forbidden(
            f"`{sender.name}` may not have answers sent to `{subject[:_SHOWN_CHARS]}`: use an "
            f"inbox ({INBOXES}), or ask an operator for it in `reply_subjects`"
        )


def _presented(headers: Mapping[str, str]) -> list[bytes]:
    found = []
    for name, text in headers.items():
        if name.lower() in CREDENTIAL_HEADERS:
            scheme, _, key = text.strip().partition(" ")
            found.append((key if scheme.lower() == "bearer" else text).strip().encode())
    return found[:MAX_CREDENTIALS]


@lru_cache(maxsize=1_024)
def _expression(pattern: str) -> re.Pattern[str]:
    """Returns a pattern of subjects as a regular expression: `*` is one token, `>` the rest."""
    return re.compile(pattern.replace(".", r"\.").replace("*", "[^.]+").replace(">", ".+"))
