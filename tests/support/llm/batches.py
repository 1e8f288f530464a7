"""Batches as a client sends and reads them."""

import asyncio
import json
from pathlib import Path

from tests.support.llm.proxy import CALLER

REPOSITORY = Path(__file__).resolve().parents[3]
OWN, OTHER = {"microdao_id": "microdao:7"}, {"microdao_id": "microdao:8"}
CALM = {
    "calm": {
        "provider": "backup",
        "name": "m",
        "timeouts": {"first_token_s": 60, "idle_s": 60, "total_s": 60},
    }
}
PATIENCE_S = 60


def request(custom_id, text="hi", **changes):
    return {
        "custom_id": custom_id,
        "model": "plain",
        "messages": [{"role": "user", "content": text}],
        "metadata": CALLER,
        **changes,
    }


def body_of(item):
    return {name: value for name, value in item.items() if name != "custom_id"}


async def submit(client, requests):
    response = await client.post("/batch", json={"requests": requests})
    assert response.status_code == 202, response.text
    return response.json()


async def wait_for(client, batch_id, *, status="completed"):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            batch = (await client.get(f"/batch/{batch_id}", params=OWN)).json()
            if batch["status"] == status:
                return batch
            await asyncio.sleep(0.05)


async def items_of(client, batch_id):
    response = await client.get(f"/batch/{batch_id}/items", params=OWN)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]
