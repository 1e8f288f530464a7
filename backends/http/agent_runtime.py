"""The AgentInvoker port: calls the agent runtime through the ingress, as any messaging service
does.
"""

from __future__ import annotations

from backends.http.client import ServiceClient
from contracts.deadline import Deadline
from contracts.errors import Unavailable
from contracts.workspace.invocations import LeasedInvocation

PATH = "/internal/agent-runtime/invocations"
# The runtime has read the invocation and will always refuse it.
FINAL = frozenset({400, 409, 413, 422})


class AgentRuntimeClient(ServiceClient):
    """Hands invocations over without waiting for their answers."""

    service = "the agent runtime"

    async def invoke(self, leased: LeasedInvocation, deadline: Deadline) -> None:
        """Hands one invocation over.

        Raises the refusal itself if it concerns this invocation for good; otherwise a retryable
        error. 404 is retryable: an ingress without an agent runtime answers so, too.
        """
        payload = {
            "channel_id": str(leased.channel_id),
            "message_id": str(leased.message_id),
            "microdao_id": leased.microdao_id,
        }
        body = {"agent_id": leased.agent_id, "entrypoint": "channel_message", "payload": payload}
        answer = await self._request("POST", PATH, deadline, body=body, params={"wait": "false"})
        if answer.ok:
            return
        refusal = self._refusal(answer)
        if answer.status in FINAL or refusal.retryable:
            raise refusal
        raise Unavailable(refusal.message, retry_after_s=refusal.retry_after_s)
