"""Rolling summaries of the short-term log, written by a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contracts.deadline import Deadline
from contracts.errors import UpstreamInvalidResponse
from contracts.identity import Tenant
from contracts.llm.ports import ChatModel, ModelRequest
from contracts.memory.api import MAX_SUMMARY_EVENTS, SummarizeRequest, SummarizeResponse
from contracts.memory.items import text_of
from contracts.memory.ports import LoggedEvent, ShortTermReader, Summary, SummaryStore
from contracts.memory.settings import SummarySettings

INSTRUCTIONS = (
    "Ти ведеш стислий підсумок подій і розмов спільноти. Онови підсумок: збережи факти, імена, "
    "дати, рішення, домовленості й відкриті питання, прибери повтори. Нічого не вигадуй. Пиши "
    "мовою записів, щонайбільше {sentences} речень, без вступу."
)
SO_FAR = "Підсумок досі:\n{summary}\n\n"
NEW = "Нові записи:\n{events}"


@dataclass(frozen=True)
class Summarizing:
    """The use case behind `POST /summarize`."""

    log: ShortTermReader
    summaries: SummaryStore
    model: ChatModel
    settings: SummarySettings

    async def summarize(self, request: SummarizeRequest) -> SummarizeResponse:
        """Returns the summary of the newest events; the stored one while nothing new has arrived.

        A stored summary that covers a part of these events is updated: the model gets it and the
        new events. Many events take several calls, each with the summary so far.

        Raises:
            DaarionError: the LLM proxy's error.
        """
        deadline = Deadline.after(request.timeout_s or self.settings.timeout_s)
        events = await self.log.read(request, request.channel_id, request.limit)
        if not events:
            return SummarizeResponse(summary="", items_processed=0)
        newest = max(event.seq for event in events)
        kept = await self.summaries.read(request, request.channel_id, request.limit)
        if kept is not None and kept.last_seq == newest:
            return _response(kept, len(events), cached=True)
        summary = await self._written(request, events, newest, kept, deadline)
        await self.summaries.write(request, request.channel_id, request.limit, summary)
        return _response(summary, len(events), cached=False)

    async def _written(
        self,
        request: SummarizeRequest,
        events: Sequence[LoggedEvent],
        newest: int,
        kept: Summary | None,
        deadline: Deadline,
    ) -> Summary:
        fresh = [event for event in events if kept is not None and event.seq > kept.last_seq]
        rolls = kept is not None and len(fresh) < len(events)
        text, model = (kept.text if kept is not None and rolls else ""), None
        todo = fresh if rolls else events
        for part in self._parts(todo):
            text, model = await self._call(request, text, part, request.channel_id, deadline)
        earlier = list(kept.sources) if kept is not None and rolls else []
        sources = list(dict.fromkeys([*earlier, *(event.memory_id for event in todo)]))[
            -MAX_SUMMARY_EVENTS:
        ]
        since = kept.since if kept is not None and rolls else events[0].created_at
        return Summary(text, sources, newest, since, events[-1].created_at, model)

    async def _call(
        self, tenant: Tenant, summary: str, part: str, channel_id: str | None, deadline: Deadline
    ) -> tuple[str, str]:
        system = INSTRUCTIONS.format(sentences=self.settings.sentences)
        user = (SO_FAR.format(summary=summary) if summary else "") + NEW.format(events=part)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        asked = ModelRequest(self.settings.model, messages, self.settings.max_tokens)
        answer = await self.model.chat(asked, tenant, channel_id, deadline)
        text = answer.content.strip()
        if not text:  # it must not replace the summary so far
            raise UpstreamInvalidResponse(
                "the model sent an empty summary: retry, or configure another model"
            )
        return text, answer.model_resolved

    def _parts(self, events: Sequence[LoggedEvent]) -> Iterator[str]:
        """Yields the events as text, up to `prompt_chars` at a time."""
        lines: list[str] = []
        size = 0
        for event in events:
            text = text_of(event.content)[: self.settings.event_chars]
            line = f"[{event.created_at:%Y-%m-%d %H:%M}] {text}"
            if lines and size + len(line) > self.settings.prompt_chars:
                yield "\n".join(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        if lines:
            yield "\n".join(lines)


def _response(summary: Summary, events: int, *, cached: bool) -> SummarizeResponse:
    return SummarizeResponse(
        summary=summary.text,
        items_processed=events,
        sources=list(summary.sources),
        since=summary.since,
        until=summary.until,
        cached=cached,
        model=summary.model,
    )
