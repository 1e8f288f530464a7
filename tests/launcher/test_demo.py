"""`make demo` where it cannot play; tests of the whole graph play it."""

import asyncio

from launcher.demo import main
from tests.support.access import fixed_access, served_keys
from tests.support.events import RecordedEvents


async def test_without_a_secret_it_says_which_variable_it_reads(capsys, monkeypatch):
    for name in ("DAARION_INTERNAL_SECRET", "DAARION_ADMIN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    access = fixed_access("the internal secret", None)
    async with served_keys(access, None, RecordedEvents()) as url:
        assert await asyncio.to_thread(main, ["--ingress", url]) == 1
    says = capsys.readouterr().err
    assert "401 present a key" in says
    assert "DAARION_INTERNAL_SECRET" in says
    assert "{" not in says
