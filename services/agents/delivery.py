"""The reply on its way into the channel: at most one message per run, whatever fails in between.

Before the first attempt the run is written down as `posting`, with its text. A service that keeps run ids takes the same post
any number of times and shows it once. With any other service a post that surely was not taken is made again; one whose fate is
not known is looked for in the channel, and never repeated.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from contracts.agents.runs import Outcome, Run
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    Unreachable,
)
from contracts.workspace.messaging_service import MAX_MESSAGE_CHARS, Messaging
from services.agents.journal import UNPOSTED
from services.agents.run_recorder import RunRecorder
from services.agents.texts import clean, cut

LOOK_AT = 50
CLOCK_SKEW = timedelta(seconds=2)
"""How far a messaging-service's clock may be behind, and how coarse its times may be."""
PREVIEW_CHARS = 40
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 2.0

Refusals = (NotFound, Forbidden, InvalidRequest)
NotTaken = (Unreachable, RateLimited, Overloaded)


class PostponedError(Exception):
    """The messaging-service is away: the run lies until it is tried again."""


@dataclass(frozen=True)
class DeliverySettings:
    """`patience_s` bounds one try of a delivery and must be shorter than a lease; `give_up_s` after the first there is no other."""

    patience_s: float = 10.0
    give_up_s: float = 900.0


@dataclass(frozen=True)
class Delivery:
    """Posts replies."""

    messaging: Messaging
    settings: DeliverySettings

    async def deliver(
        self, run: Run, recorder: RunRecorder, text: str, outcome: Outcome
    ) -> Outcome:
        """Posts `text` as the reply of a run with this outcome; returns the outcome to record.

        Raises PostponedError, RunLostError or DatabaseUnavailable.
        """
        recorder.record_reply(cut(clean(text), MAX_MESSAGE_CHARS))
        if run.channel_id is None or run.invocation.entrypoint == "direct":
            return outcome
        await recorder.record_posting()
        return await self._posted(run, recorder, outcome, is_first=True)

    async def resume(self, run: Run, recorder: RunRecorder) -> Outcome:
        """Completes a delivery that another replica began. Raises as `deliver`."""
        is_first = UNPOSTED in run.journal
        if is_first:
            await recorder.record_posting_again()
        outcome: Outcome = "failed" if run.error else "answered"
        return await self._posted(run, recorder, outcome, is_first=is_first)

    async def _posted(
        self, run: Run, recorder: RunRecorder, outcome: Outcome, *, is_first: bool
    ) -> Outcome:
        keeps_run_ids = self.messaging.keeps_run_ids
        try:
            with recorder.step("reply"):
                if keeps_run_ids:
                    await self._repeatedly(run)
                elif not await self._once(run, recorder, is_first=is_first):
                    return "indeterminate"
        except Refusals as error:
            recorder.record_error(error.type)
            return outcome if outcome == "failed" else "undelivered"
        except DaarionError as error:
            if run.posting_s < self.settings.give_up_s:
                if UNPOSTED in run.journal:
                    await recorder.save()
                raise PostponedError from error
            recorder.record_error(error.type)
            is_absent = keeps_run_ids or UNPOSTED in run.journal
            return "undelivered" if is_absent else "indeterminate"
        recorder.show("reply", ok=outcome == "answered")
        return outcome

    async def _repeatedly(self, run: Run) -> None:
        """Posts under the run's id until it is known to be there. Raises the last failure."""
        await self._post(run, Deadline.after(self.settings.patience_s), retry_on=(DaarionError,))

    async def _once(self, run: Run, recorder: RunRecorder, *, is_first: bool) -> bool:
        """Posts until the message may have been taken, and no more in a run's life; returns whether it is known to be there."""
        if is_first:
            try:
                await self._post(
                    run, Deadline.after(self.settings.patience_s / 2), retry_on=NotTaken
                )
            except Refusals:
                raise
            except NotTaken:
                recorder.record_unposted()
                raise
            except DaarionError:
                pass
            else:
                return True
        return await self._is_there(run, Deadline.after(self.settings.patience_s / 2))

    async def _is_there(self, run: Run, until: Deadline) -> bool:
        """Looks for the reply among the channel's newest messages; a service may show only its beginning."""
        assert run.channel_id is not None  # only replies to channels are delivered
        assert run.reply is not None
        since = (run.posting_since or run.created_at) - CLOCK_SKEW
        for message in await self.messaging.recent_messages(run.channel_id, LOOK_AT, until):
            shown = message.text.rstrip("….").strip()
            begins = run.reply.strip().startswith(shown) and len(shown) >= min(
                PREVIEW_CHARS, len(run.reply.strip().rstrip("…."))
            )
            if message.sender_id == run.agent_id and message.created_at >= since and begins:
                return True
        return False

    async def _post(
        self, run: Run, until: Deadline, *, retry_on: tuple[type[DaarionError], ...]
    ) -> None:
        """Posts, and again after these failures while there is time. Raises the last failure."""
        assert run.channel_id is not None  # only replies to channels are delivered
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self.messaging.post_as_agent(
                    run.agent_id, run.channel_id, run.reply or "", str(run.id), until
                )
            except Refusals:
                raise
            except retry_on:
                if until.remaining() < pause:
                    raise
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
