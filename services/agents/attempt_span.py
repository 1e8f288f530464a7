"""The span of one attempt at a run, after OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

from contextlib import AbstractContextManager

from common import tracing
from contracts.agents.runs import Run

OUTCOME = "daarion.outcome"


def attempt_span(run: Run) -> AbstractContextManager[tracing.Span]:
    """Returns the span of an attempt, in the trace that the run began in."""
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": run.agent_id,
        "daarion.microdao_id": run.microdao_id,
        "daarion.run_id": str(run.id),
        "daarion.attempt": run.attempt,
    }
    if run.channel_id is not None:
        attributes["gen_ai.conversation.id"] = run.channel_id
    name, parent = f"invoke_agent {run.agent_id}", tracing.continued(run.traceparent)
    return tracing.span(name, attributes=attributes, parent=parent)
