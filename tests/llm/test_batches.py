"""Batches over HTTP and PostgreSQL: order of results, tenants, bounds, cancellation."""

import asyncio
import collections
import json

import psycopg

from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import (
    CALM,
    OTHER,
    OWN,
    PATIENCE_S,
    items_of,
    request,
    submit,
    wait_for,
)
from tests.support.llm.proxy import CALLER


async def test_every_request_has_its_own_result_in_the_order_of_submission(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        requests = [request(f"c-{number}", f"Питання {number}") for number in range(40)]
        requests[3] = request("c-3", model="nope")
        requests[5] = request("c-5", "\u0000нуль")
        batch = await submit(replica.client, requests)
        assert batch["id"].startswith("batch-")
        assert (batch["status"], batch["counts"]["total"]) == ("in_progress", 40)
        done = await wait_for(replica.client, batch["id"])
        assert done["counts"] == {
            "total": 40,
            "pending": 0,
            "running": 0,
            "succeeded": 39,
            "failed": 1,
            "cancelled": 0,
        }
        assert done["ended_at"] >= done["created_at"]
        lines = await items_of(replica.client, batch["id"])
        assert [line["custom_id"] for line in lines] == [f"c-{number}" for number in range(40)]
        assert lines[7]["response"]["content"] == "Echo: Питання 7"
        assert lines[5]["response"]["content"] == "Echo: \u0000нуль"
        assert lines[7]["response"]["usage"]["total_tokens"] > 0
        assert (lines[3]["status"], lines[3]["error"]["type"]) == ("failed", "model_not_found")
        assert upstream.total == 39
        assert {record.microdao_id for record in replica.recorder.records} == {"microdao:7"}
        assert len({record.request_id for record in replica.recorder.records}) == 39


async def test_tenants_never_see_each_others_batches(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        batch = (await submit(replica.client, [request("a")]))["id"]
        for method, path in (
            ("GET", f"/batch/{batch}"),
            ("DELETE", f"/batch/{batch}"),
            ("GET", f"/batch/{batch}/items"),
        ):
            for params in (OTHER, {"microdao_id": "'; --"}):
                assert (
                    await replica.client.request(method, path, params=params)
                ).status_code == 404
            assert (await replica.client.request(method, path)).status_code == 400
            both = await replica.client.request(
                method, path, params=OTHER, headers={"X-Microdao-Id": "microdao:7"}
            )
            assert both.status_code == 400
        assert (await replica.client.get("/batch", params=OTHER)).json() == {"batches": []}
        for unknown in ("batch-0", "nope", "batch-00000000-0000-0000-0000-000000000000"):
            assert (await replica.client.get(f"/batch/{unknown}", params=OWN)).status_code == 404
        assert (
            await replica.client.get(f"/batch/{batch}", headers={"X-Microdao-Id": "microdao:7"})
        ).status_code == 200
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("SET ROLE daarion_service")
            for table in ("llm_batches", "llm_batch_items", "llm_batch_turns"):
                assert (
                    await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
                )[0] == 0


async def test_the_list_is_paged_newest_first(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        made = [(await submit(replica.client, [request("a")]))["id"] for _ in range(7)]
        seen, cursor = [], None
        while True:
            params = {**OWN, "limit": 3, **({"cursor": cursor} if cursor else {})}
            page = (await replica.client.get("/batch", params=params)).json()
            seen += [batch["id"] for batch in page["batches"]]
            cursor = page.get("next_cursor")
            if cursor is None:
                break
            assert (
                await replica.client.get("/batch", params={**OTHER, "cursor": cursor})
            ).status_code == 400
        assert seen == made[::-1]


NO_BATCHES = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"[]", 400, "an object"),
    (b'{"requests": {}}', 400, "requests"),
    (b'{"requests": []}', 400, "from 1 to 10000"),
    ({"requests": [request("a")], "priority": 1}, 400, "priority"),
    ({"requests": [request("a"), request("b", temperature=9)]}, 400, "requests[1].temperature"),
    ({"requests": [request("a"), {"custom_id": "b"}]}, 400, "requests[1].model"),
    ({"requests": [request("a"), 7]}, 400, "requests[1]"),
    ({"requests": [request("a"), request("b"), request("a")]}, 400, "requests[2].custom_id"),
    ({"requests": [request("")]}, 400, "requests[0].custom_id"),
    (
        {
            "requests": [
                request("a"),
                request("b", metadata={**CALLER, "microdao_id": "microdao:8"}),
            ]
        },
        400,
        "one microDAO",
    ),
    ({"requests": [request("a", cache={"ttl_s": 5})]}, 400, "temperature"),
    ({"requests": [request("a", colour="red")]}, 400, "requests[0].colour"),
    ({"requests": [{"custom_id": str(number)} for number in range(10_001)]}, 400, "10001"),
    (b" " * 50_000_001, 413, "47 MiB"),
]


async def test_an_invalid_batch_is_refused_as_a_whole(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        for body, status, reason in NO_BATCHES:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            response = await replica.client.post("/batch", content=content)
            assert (response.status_code, response.json()["error"]["retryable"]) == (status, False)
            assert reason in response.json()["error"]["message"]
        assert (await replica.client.get("/batch", params=OWN)).json() == {"batches": []}


async def test_a_microdaos_waiting_requests_are_bounded(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0, "max_waiting": 3}}
    ) as replica:
        first = await submit(replica.client, [request("a"), request("b")])
        refused = await replica.client.post(
            "/batch", json={"requests": [request("c"), request("d")]}
        )
        assert refused.status_code == 429
        assert refused.headers["Retry-After"]
        assert refused.json()["error"]["details"]["left"] == 1
        never = await replica.client.post(
            "/batch", json={"requests": [request(str(number)) for number in range(4)]}
        )
        assert (never.status_code, never.json()["error"]["type"]) == (429, "over_limit")
        assert "Retry-After" not in never.headers
        await replica.client.delete(f"/batch/{first['id']}", params=OWN)
        await submit(replica.client, [request("c"), request("d")])


async def test_the_largest_batch_is_accepted_without_blocking_the_event_loop(
    database_url, upstream
):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        content = json.dumps(
            {"requests": [request(str(number), "ї" * 300) for number in range(10_000)]}
        ).encode()
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        beating = asyncio.create_task(beat())
        response = await replica.client.post("/batch", content=content)
        beating.cancel()
        assert response.status_code == 202, response.text
        assert response.json()["counts"]["pending"] == 10_000
        assert beats > 20
        lines = await items_of(replica.client, response.json()["id"])
        assert [line["custom_id"] for line in lines] == [str(number) for number in range(10_000)]
        assert {line["status"] for line in lines} == {"pending"}


async def test_cancelling_keeps_results_stops_running_requests_and_starts_no_others(
    database_url, upstream
):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 2}}, **CALM
    ) as replica:
        upstream.script(*["ok"] * 3, "silence")
        batch = (
            await submit(
                replica.client, [request(str(number), model="calm") for number in range(20)]
            )
        )["id"]
        await upstream.wait_for(requests=5, timeout_s=PATIENCE_S)
        assert (await replica.client.delete(f"/batch/{batch}", params=OWN)).json()[
            "status"
        ] == "cancelling"
        await upstream.wait_for(cancelled=2, timeout_s=PATIENCE_S)
        done = await wait_for(replica.client, batch, status="cancelled")
        assert done["counts"] == {
            "total": 20,
            "pending": 0,
            "running": 0,
            "succeeded": 3,
            "failed": 0,
            "cancelled": 17,
        }
        statuses = collections.Counter(
            line["status"] for line in await items_of(replica.client, batch)
        )
        assert statuses == {"succeeded": 3, "cancelled": 17}
        assert (await replica.client.delete(f"/batch/{batch}", params=OWN)).json()[
            "status"
        ] == "cancelled"
        assert upstream.total == 5


async def test_submissions_at_once_do_not_pass_the_bound_together(database_url, upstream):
    sections = {"batch": {"concurrency": 0, "max_waiting": 30}}
    async with (
        llm_replica(database_url, upstream.base_url, sections=sections) as one,
        llm_replica(database_url, upstream.base_url, sections=sections) as another,
    ):
        body = {"requests": [request(str(number)) for number in range(10)]}
        clients = [one.client, another.client] * 4
        answers = await asyncio.gather(*(client.post("/batch", json=body) for client in clients))
        assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 5
