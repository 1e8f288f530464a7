"""Posts the reply into the channel: at most one message per run, whatever fails.

Before the first post the run is saved as `posting`, with its text. A service that
deduplicates by run id accepts repeated posts and shows one message. With any other service, a post
is repeated only when it was certainly not accepted; when its outcome is unknown, the message is
searched in the channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from common.retry import retry
from contracts.agents.runs import Outcome, Run
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    Forbidden,
    InvalidRequest,
    NotFound,
    OverLimit,
    Overloaded,
    RateLimited,
    Unreachable,
)
from contracts.workspace.messaging_service import MAX_MESSAGE_CHARS, Messaging
from services.agents.journal import UNPOSTED
from services.agents.run_recorder import RunRecorder
from services.agents.texts import clean, cut

SEARCHED_MESSAGES = 50
CLOCK_SKEW = timedelta(seconds=2)
"""How far the messaging service's clock may be behind, and the precision of its times."""
PREVIEW_CHARS = 40

REFUSALS = (NotFound, Forbidden, InvalidRequest, OverLimit)
NOT_ACCEPTED = (Unreachable, RateLimited, Overloaded)


class PostponedError(Exception):
    """The messaging service is away: the run is released and its delivery retried later."""


@dataclass(frozen=True)
class Delivery:
    """Posts replies of runs.

    `patience_s` bounds the retries of one attempt and must be shorter than a lease. A delivery that
    has failed for `give_up_s` is given up.
    """

    messaging: Messaging
    patience_s: float = 10.0
    give_up_s: float = 900.0

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
        return await self._post_and_record(run, recorder, outcome, may_post=True)

    async def resume(self, run: Run, recorder: RunRecorder) -> Outcome:
        """Completes a delivery that another replica began. Raises as `deliver`."""
        may_post = UNPOSTED in run.journal
        if may_post:
            await recorder.record_post_retry()
        outcome: Outcome = "failed" if run.error else "answered"
        return await self._post_and_record(run, recorder, outcome, may_post=may_post)

    async def _post_and_record(
        self, run: Run, recorder: RunRecorder, outcome: Outcome, *, may_post: bool
    ) -> Outcome:
        deduplicates_by_run_id = self.messaging.deduplicates_by_run_id
        try:
            with recorder.step("reply"):
                if deduplicates_by_run_id:
                    until = Deadline.after(self.patience_s)
                    await self._post(run, until, retry_on=(DaarionError,))
                elif not await self._post_at_most_once(run, recorder, may_post=may_post):
                    return "indeterminate"
        except REFUSALS as error:
            recorder.record_error(error.type)
            return outcome if outcome == "failed" else "undelivered"
        except DaarionError as error:
            if run.posting_s < self.give_up_s:
                if UNPOSTED in run.journal:
                    await recorder.save()
                raise PostponedError from error
            recorder.record_error(error.type)
            is_absent = deduplicates_by_run_id or UNPOSTED in run.journal
            return "undelivered" if is_absent else "indeterminate"
        recorder.show("reply", ok=outcome == "answered")
        return outcome

    async def _post_at_most_once(self, run: Run, recorder: RunRecorder, *, may_post: bool) -> bool:
        """Retries while the message was certainly not accepted; otherwise searches for it.

        Returns whether the message is known to be in the channel.
        """
        if may_post:
            try:
                await self._post(run, Deadline.after(self.patience_s / 2), retry_on=NOT_ACCEPTED)
            except REFUSALS:
                raise
            except NOT_ACCEPTED:
                recorder.record_unposted()
                raise
            except DaarionError:
                pass
            else:
                return True
        return await self._is_there(run, Deadline.after(self.patience_s / 2))

    async def _is_there(self, run: Run, until: Deadline) -> bool:
        """Searches the newest messages for the reply, of which a service may show only the
        beginning.
        """
        assert run.channel_id is not None  # only replies to channels are delivered
        assert run.reply is not None
        since = (run.posting_since or run.created_at) - CLOCK_SKEW
        for message in await self.messaging.recent_messages(
            run.channel_id, SEARCHED_MESSAGES, until
        ):
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
        """Posts; retries on these failures until the deadline. Raises the last failure."""
        channel_id = run.channel_id
        assert channel_id is not None  # only replies to channels are delivered
        await retry(
            lambda: self.messaging.post_as_agent(
                run.agent_id, channel_id, run.reply or "", str(run.id), until
            ),
            lambda error: isinstance(error, retry_on) and not isinstance(error, REFUSALS),
            within_s=until.remaining(),
        )
