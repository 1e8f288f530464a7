"""`messaging.message.created` on a real NATS server: once per message, and never its text."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import nats

from backends.nats.publisher import NatsPublisher
from backends.workspace.notices import MESSAGE_CREATED_SUBJECT, NatsMessageNotices
from contracts.workspace.messages import Message
from launcher.nats import NatsServer
from tests.support.workspace.application import workspace


async def test_each_message_is_announced_once_without_its_text(database_url, tmp_path, events):
    async with NatsServer(tmp_path) as server:
        outside = await nats.connect(server.url)
        heard = await outside.subscribe(MESSAGE_CREATED_SUBJECT)
        await outside.flush()
        publisher = NatsPublisher(server.url, events, name="workspace")
        publisher.start()
        notices = NatsMessageNotices(publisher)
        async with workspace(database_url, events) as replica:
            replica.notices.created = notices.created
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(replica.app), base_url="http://localhost"
            ) as http:
                body = {
                    "name": "x",
                    "microdao_id": "microdao:7",
                    "members": ["user:olena", "agent:sofia"],
                }
                channel = (await http.post("/channels", json=body)).json()["id"]
                message = {"sender_id": "user:olena", "text": "таємниця", "message_id": "m-1"}
                stored = (await http.post(f"/channels/{channel}/messages", json=message)).json()
                await http.post(f"/channels/{channel}/messages", json=message)
                posted = {"channel_id": channel, "text": "відповідь", "run_id": "run-1"}
                await http.post("/agents/agent:sofia/post-to-channel", json=posted)
        notices = [json.loads((await heard.next_msg(timeout=30)).data) for _ in range(2)]
        await publisher.close()
        assert heard.pending_msgs == 0
        await outside.close()
    assert notices[0] == {
        "message_id": stored["id"],
        "channel_id": channel,
        "microdao_id": "microdao:7",
        "sender_id": "user:olena",
        "sender_type": "human",
        "run_id": None,
        "created_at": notices[0]["created_at"],
    }
    assert datetime.fromisoformat(notices[0]["created_at"]) == datetime.fromisoformat(
        stored["created_at"]
    )
    assert (notices[1]["sender_id"], notices[1]["run_id"]) == ("agent:sofia", "run-1")


async def test_without_nats_no_notice_is_queued(events):
    publisher = NatsPublisher(None, events, name="workspace")
    message = Message(
        id=uuid4(),
        channel_id=uuid4(),
        sender_id="user:o",
        sender_type="human",
        body="x",
        created_at=datetime.now(UTC),
    )
    NatsMessageNotices(publisher).created("microdao:7", message)
    assert len(publisher._queue) == 0
