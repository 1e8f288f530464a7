"""What the ingress writes to the audit trail, and who sees the details of health."""

import contextlib

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from backends.access.audit import PostgresAudit
from backends.postgres.pool import Database
from contracts.access.audit import AuditQuery
from contracts.access.principals import Grants
from contracts.errors import NotFound, RateLimited
from contracts.health import Check, Health
from interfaces.http.access import access_router
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.ingress import Ingress
from interfaces.http.base.routing import Router
from launcher.ports import free_ports
from services.access.audit import AuditTrail
from tests.support.access import access_control

ROOT = "/internal/things"
INTERNAL, ADMIN = "internal-secret-of-tests", "admin-secret-of-tests"
KEYS = {"dk_olena": "olena", "dk_taras": "taras", "dk_none": "nothing"}
PRINCIPALS = {
    "nothing": Grants(),
    "olena": Grants(kind="operator"),
    "taras": Grants(agents=["agent:taras"], microdaos=["microdao:7"]),
}
SECRET = "words that no trail may hold"
HEALTH = Health(
    status="degraded", checks={"nats": Check(state="starting", required=False, age_s=1, since_s=2)}
)


class Things:
    """An application with operator routes, over a trail in PostgreSQL."""

    def __init__(self, database, events, *, internal=INTERNAL, admin=ADMIN):
        self.store = PostgresAudit(database)
        self.trail = AuditTrail(self.store, events, lambda: None)
        access = access_control(internal, admin, principals=PRINCIPALS, keys=KEYS, audit=self.trail)
        router = Router()
        router.add_api_route("/things/{name}", self.put, methods=["PUT"])
        router.add_api_route("/things/{name}", self.delete, methods=["DELETE"])
        router.add_api_route("/things", self.read, methods=["GET"])
        router.add_api_route("/export", self.read, methods=["GET"])
        router.add_api_route("/import", self.take, methods=["POST"])
        router.add_api_route("/items", self.items, methods=["GET"])
        add_health_routes(router, lambda: HEALTH)
        router.include_router(access_router(None, self.store))
        self.ingress = Ingress(
            router,
            access,
            events,
            max_concurrent=9,
            is_admin=lambda _method, path: not path.startswith("/items"),
            uploads=frozenset({"/import"}),
        )
        self.seen = None

    async def put(self, name: str, body: dict[str, str]) -> None:
        self.seen = await self.rows()

    async def delete(self, name: str) -> Response:
        if name == "unknown":
            raise NotFound("no such thing")
        return Response(status_code=409)

    async def read(self) -> list[str]:
        return []

    async def take(self, request: Request) -> None:
        assert [piece async for piece in request.stream()]

    async def items(self, microdao_id: str | None = None, agent_id: str | None = None) -> None:
        pass

    async def rows(self):
        """The rows, oldest first."""
        await self.trail.flush()
        return (await self.store.page(AuditQuery())).items[::-1]

    @contextlib.asynccontextmanager
    async def client(self, key=None):
        async def below(scope, receive, send):
            await self.ingress({**scope, "root_path": ROOT}, receive, send)

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(below),
            base_url=f"http://localhost{ROOT}",
            headers={"x-request-id": "r-1", **headers},
        ) as client:
            yield client


@pytest.fixture
def things(database, events):
    return Things(database, events)


def told(row):
    """The fields that are given, as one line."""
    tenant = [each for each in (row.microdao_id, row.agent_id) if each]
    return " ".join([row.principal, row.action, row.object, row.outcome, *tenant])


async def test_an_action_is_recorded_before_it_is_served_and_when_it_has_ended(things):
    async with things.client("dk_olena") as client:
        body = {"microdao_id": "microdao:7", "agent_id": "agent:sofia", "text": SECRET}
        answer = await client.put("/things/one", json=body)
    assert answer.status_code == 200
    begun = "olena PUT things/things/one started microdao:7 agent:sofia"
    assert [told(row) for row in things.seen] == [begun]
    rows = await things.rows()
    assert [told(row) for row in rows] == [begun, begun.replace("started", "success")]
    assert {row.request_id for row in rows} == {"r-1"}
    for kept in (SECRET, "dk_olena"):
        assert kept not in "".join(row.model_dump_json() for row in rows)


@pytest.mark.parametrize(("method", "path"), [("GET", "/export"), ("POST", "/import")])
async def test_the_tenant_of_an_export_or_import_stands_in_the_query(things, method, path):
    async with things.client(ADMIN) as client:
        asked = f"{path}?microdao_id=microdao:7&text=x"
        content = b'{"microdao_id": "microdao:9"}' if method == "POST" else None
        assert (await client.request(method, asked, content=content)).status_code == 200
    assert [told(row) for row in await things.rows()] == [
        f"operator {method} things{path} {outcome} microdao:7" for outcome in ("started", "success")
    ]


@pytest.mark.parametrize(
    "body", [b'{"microdao_id": "microdao:7"}', b'{"n": NaN, "microdao_id": "microdao:7"}']
)
async def test_an_action_cannot_name_another_tenant_than_the_one_it_is_done_to(things, body):
    """Neither by a query that the route does not read, nor by a body in pieces."""

    async def pieces():
        yield body[:9]
        yield body[9:]

    headers = {"content-type": "application/json"}
    async with things.client("dk_olena") as client:
        path = "/things/one?microdao_id=microdao:9"
        await client.put(path, content=pieces(), headers=headers)
        await client.delete(path)
    assert {told(row) for row in await things.rows() if row.outcome == "started"} == {
        "olena PUT things/things/one started microdao:7",
        "olena DELETE things/things/one started",
    }


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"x" * 9, {"content-type": "text/plain"}, 415),
        (b"[%s]" % (b"1," * (4 << 20)), {"content-type": "application/json"}, 413),
    ],
    ids=["no JSON", "too large"],
)
async def test_a_body_that_cannot_be_read_is_not_served(things, content, headers, status):
    async with things.client("dk_olena") as client:
        answer = await client.put("/things/one", content=content, headers=headers)
    assert (answer.status_code, things.seen, await things.rows()) == (status, None, [])


@pytest.mark.parametrize(("name", "status"), [("unknown", 404), ("other", 409)])
async def test_an_action_that_fails_is_recorded_as_failed(things, name, status):
    async with things.client("dk_olena") as client:
        assert (await client.delete(f"/things/{name}")).status_code == status
    assert [row.outcome for row in await things.rows()] == ["started", "failure"]


async def test_without_postgresql_no_action_happens_and_reads_go_on(events):
    [closed] = free_ports(1)
    away = Database(f"postgresql://nobody@127.0.0.1:{closed}/nothing", events=events)
    await away.open()
    things = Things(away, events)
    try:
        async with things.client("dk_olena") as client:
            answer = await client.put("/things/one", json={})
            assert (answer.status_code, answer.json()["error"]["type"]) == (
                503,
                "database_unavailable",
            )
            assert things.seen is None
            assert (await client.get("/things")).status_code == 200
        async with things.client(INTERNAL) as client:
            assert (await client.get("/items")).status_code == 200
            assert (await client.get("/things")).status_code == 403
    finally:
        await away.close()


@pytest.mark.parametrize(
    ("grants", "shown"),
    [
        ({"kind": "operator", "agents": [SECRET]}, ": operator, agents"),
        ({"models": [SECRET], "limits": {"usd_per_day": "2.5"}}, ": service, limits, models"),
        ({"agents": ["agent:sofia"], SECRET: 1}, ""),
        ({"kind": [SECRET]}, ""),
        ([SECRET], ""),
    ],
)
async def test_what_a_principal_is_given_is_recorded_by_name(things, grants, shown):
    async with things.client("dk_olena") as client:
        await client.put("/internal/access/principals/boss", json=grants)
    assert {row.object for row in await things.rows()} == {
        f"things/internal/access/principals/boss{shown}"
    }


async def test_reads_and_other_routes_are_not_recorded(things):
    async with things.client("dk_olena") as client:
        for path in ("/things", "/items", "/internal/access/audit"):
            assert (await client.get(path)).status_code == 200
    assert await things.rows() == []


async def test_what_a_principal_may_not_do_is_recorded(things):
    async with things.client("dk_taras") as client:
        for _ in range(3):
            assert (await client.put("/things/one", json={"text": SECRET})).status_code == 403
        denied = await client.get("/items?microdao_id=microdao:9")
    assert denied.status_code == 403
    assert denied.json()["error"]["details"] == {"microdao_id": "microdao:9"}
    rows = await things.rows()
    assert [(told(row), row.count) for row in rows] == [
        ("taras PUT things/things/one denied", 3),
        ("taras GET things/items denied microdao:9", 1),
    ]


async def test_who_was_granted_nothing_is_told_so_whatever_is_named(things):
    async with things.client("dk_none") as client:
        for path, says in (
            ("/items", "is granted to `nothing`: GET"),
            ("/items?microdao_id=microdao:7", "GET /internal/access/me"),
        ):
            denied = await client.get(path)
            assert denied.status_code == 403
            assert says in denied.json()["error"]["message"]


async def test_refused_logins_are_one_row_whatever_they_ask_for(things):
    for path, key in (("/items", "dk_wrong"), ("/things/x", "guess"), ("/no/such", "guess")):
        async with things.client(key) as client:
            assert (await client.get(path)).status_code == 401
    async with things.client() as client:
        assert (await client.get("/items")).status_code == 401  # no login at all
    [row] = await things.rows()
    assert (told(row), row.count) == ("anonymous login things denied", 3)


@pytest.mark.parametrize("key", [None, "dk_olena", "guess"])
async def test_pages_of_other_origins_are_one_row_whatever_they_ask_for(things, key):
    async with things.client(key) as client:
        for method, path in (("GET", "/a"), ("GET", "/b"), ("BREW", "/a"), ("GET", "/health")):
            answer = await client.request(method, path, headers={"Origin": "http://evil.example"})
            assert answer.status_code == (200 if path == "/health" else 403)
    [row] = await things.rows()
    assert (told(row), row.count) == ("anonymous login things denied", 4)


async def test_logins_that_are_not_even_looked_at_count_as_refused(things, monkeypatch):
    def check(_headers):
        raise RateLimited("too many credentials were refused lately")

    monkeypatch.setattr(things.ingress._access, "check", check)
    async with things.client("guess") as client:
        assert (await client.get("/items")).status_code == 429
    assert [told(row) for row in await things.rows()] == ["anonymous login things denied"]


async def test_operators_read_the_trail(things):
    async with things.client("dk_olena") as client:
        await client.put("/things/one", json={})
        await things.trail.flush()
        found = (await client.get("/internal/access/audit?principal=olena&limit=1")).json()
        assert (found["items"][0]["outcome"], found["items"][0]["count"]) == ("success", 1)
        span = {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
        mistake = await client.get("/internal/access/audit", params=span)
    assert (mistake.status_code, mistake.json()["error"]["message"]) == (
        400,
        "`since` is later than `until`: exchange them",
    )
    async with things.client(INTERNAL) as client:
        assert (await client.get("/internal/access/audit")).status_code == 403


SHOWN = HEALTH.model_dump(mode="json", exclude_none=True)
HIDDEN = {"status": "degraded", "checks": {}}


@pytest.mark.parametrize(
    ("key", "shown"),
    [(None, HIDDEN), ("guess", HIDDEN), ("dk_taras", SHOWN), (INTERNAL, SHOWN), (ADMIN, SHOWN)],
    ids=["no credential", "a wrong one", "a key", "the internal secret", "the admin secret"],
)
async def test_details_of_health_are_for_those_who_present_a_credential(things, key, shown):
    async with things.client(key) as client:
        answer = await client.get("/health")
        assert (await client.get("/health/live")).json() == {"status": "alive"}
    assert (answer.status_code, answer.json()) == (200, shown)
    refused = [told(row) for row in await things.rows()]
    assert refused == (["anonymous login things denied"] if key == "guess" else [])


async def test_without_secrets_everybody_sees_the_details_of_health(database, events):
    async with Things(database, events, internal=None, admin=None).client() as client:
        assert (await client.get("/health")).json() == SHOWN
