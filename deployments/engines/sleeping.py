"""The port of a chat engine that may sleep: Serve stops its last replica when it is idle.

Only a call wakes it. Health and listings read Serve's state, never a replica: a probe would keep
the engine awake.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Literal

from ray import serve

from common.tasks import spawn
from configs.engines.config import WhenAsleep
from contracts.deadline import Deadline
from contracts.errors import EngineUnavailable, ModelAsleep
from contracts.llm.ports import Condition
from deployments.engines.chat_models import LOCAL_LLM, ChatModel
from deployments.engines.clients import EngineClient, starting

Seen = Literal["awake", "asleep", "failed", "absent"]
LOOK_EVERY_S = 1.0
"""The age of Serve's state, which its controller computes anew for each question."""
POLL_S = 0.25
WAKE_S = 600.0
RETRY_AFTER_S = 15.0


async def serve_state(application: str) -> Seen:
    """Returns whether a replica of the application's engine runs."""
    overview = (await asyncio.to_thread(serve.status)).applications.get(application)
    engine = None if overview is None else overview.deployments.get(LOCAL_LLM)
    if engine is None:
        return "absent"
    if any(count for state, count in engine.replica_states.items() if state == "RUNNING"):
        return "awake"
    # A replica that fails while it is woken makes its deployment unhealthy.
    broken = engine.status == "UNHEALTHY" and engine.status_trigger == "REPLICA_STARTUP_FAILED"
    return "failed" if broken or engine.status == "DEPLOY_FAILED" else "asleep"


class SleepingEngine(EngineClient):
    """Calls an engine that may sleep; `when_asleep` says what a call does then.

    Its load is unknown, so that nothing spills over from it.
    """

    def __init__(
        self,
        application: str,
        when_asleep: WhenAsleep,
        state_of: Callable[[str], Awaitable[Seen]] = serve_state,
    ) -> None:
        super().__init__(LOCAL_LLM, application)
        self._application = application
        self._when_asleep = when_asleep
        self._state_of = state_of
        self._looking = asyncio.Lock()
        self._seen: Seen = "absent"
        self._seen_at = float("-inf")
        self._waking: set[asyncio.Task[None]] = set()

    async def awake(self, deadline: Deadline) -> None:
        """Returns when a replica runs, and wakes one if none does."""
        if await self._state() == "awake":
            return
        self._ask()
        if self._when_asleep != "wait":
            kind = ModelAsleep if self._when_asleep == "refuse" else EngineUnavailable
            raise kind(
                "the local model sleeps and is being woken: retry", retry_after_s=RETRY_AFTER_S
            )
        while await self._state() != "awake":
            deadline.check()
            self._ask()  # again, where Serve gave the last question up
            await asyncio.sleep(deadline.at_most(POLL_S))

    async def stats(self) -> Literal["awake", "asleep"]:
        """Returns Serve's state of the engine. Raises EngineUnavailable when it cannot start."""
        try:
            state = await self._state()
        except EngineUnavailable as error:
            self.condition = Condition(error.message)
            raise
        self.condition = Condition()
        return state

    async def _state(self) -> Literal["awake", "asleep"]:
        async with self._looking:
            if time.monotonic() - self._seen_at >= LOOK_EVERY_S:
                self._seen = await self._state_of(self._application)
                self._seen_at = time.monotonic()
        if self._seen == "absent":
            raise starting()
        if self._seen == "failed":
            raise EngineUnavailable("the local model cannot start; a reload tries it anew")
        return self._seen

    def _ask(self) -> None:
        if not self._waking:
            spawn(self._wake(), self._waking)

    async def _wake(self) -> None:
        """Asks the engine: a call that waits makes Serve start a replica."""
        with suppress(Exception):
            async with asyncio.timeout(WAKE_S):
                await super().stats()


def open_engines(
    models: Mapping[str, ChatModel], known: Mapping[str, tuple[ChatModel, EngineClient]]
) -> dict[str, tuple[ChatModel, EngineClient]]:
    """Returns the models' engines by their names in answers; unchanged ones are those `known`."""
    return {
        name: known[name]
        if name in known and known[name][0] == model
        else (
            model,
            EngineClient(LOCAL_LLM, model.application)
            if model.when_asleep is None
            else SleepingEngine(model.application, model.when_asleep),
        )
        for name, model in models.items()
    }
