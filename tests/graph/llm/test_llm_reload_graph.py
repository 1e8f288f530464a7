"""`make reload` on the running graph."""

import pytest
import yaml

from tests.support.graph.llm_calls import until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]


async def test_a_reload_changes_routes_in_place_and_refuses_mistakes(graph, client):
    replicas = {process.pid for process in graph.replicas("llm", "LLMProxy")}
    file = graph.config_dir / "llm.yaml"
    original = file.read_text()
    changed = yaml.safe_load(original)
    changed["models"]["new-name"] = {"provider": "openai", "name": "gpt-4.1-mini"}
    try:
        graph.write_llm(changed)
        graph.reload()

        async def known():
            answers = [await client.get("/internal/llm/models") for _ in range(6)]
            return all(
                "new-name" in [row["id"] for row in answer.json()["models"]] for answer in answers
            )

        assert await until(known)
        file.write_text("models: {}")
        graph.reload("not reloaded: llm.yaml: ")
        assert await known()
        serve_file, serve_text = (
            graph.folder / "serve_config.yaml",
            (graph.folder / "serve_config.yaml").read_text(),
        )
        file.write_text(original)
        for right, wrong in (
            ("deployments.tools.app:build", "deployments.tool_app:build"),
            ("max_concurrent", "max_concurent"),
        ):
            serve_file.write_text(serve_text.replace(right, wrong))
            graph.reload("not reloaded: application ")
            assert (await client.get("/health")).status_code == 200
            serve_file.write_text(serve_text)
        assert await known()  # the correct values of those files were not applied either
    finally:
        file.write_text(original)
        graph.reload()
    assert {process.pid for process in graph.replicas("llm", "LLMProxy")} == replicas
