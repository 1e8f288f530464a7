"""Embeds the stored memory anew: `python -m deployments.memory.reembed --engines-file engines.next.yaml`, while everything runs.

1. Write the new embedder, with a new `version`, into a copy of `engines.yaml` and run the command with it. Searches go on
   with the old vectors; the command can be repeated after an interruption.
2. Put the copy in place of `engines.yaml` and redeploy `engines` and `memory`: from then on the new vectors are searched.
   What was stored in between is embedded by the ordinary ingestion.
3. `python -m deployments.memory.reembed --prune` removes the vectors that are searched no more.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from backends.memory.embedding_spaces import EmbeddingSpaces
from backends.memory.reembedding import ReembeddingStore
from backends.postgres.pool import Database, PoolLimits
from configs.engines.config import load_engines
from configs.engines.embedder import RemoteEmbedderSettings
from configs.environment import Environment, read_environment
from configs.stores import find_stores
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.llm.embeddings import Embedder, EmbeddingSpace
from contracts.memory.ports import Area
from providers.embeddings import OpenAIEmbedder

BATCH = 64
EMBED_TIMEOUT_S = 600.0
PRUNE_AT_ONCE = 2_000


class _NoEvents:
    def emit(self, event: str, **fields: Any) -> None:
        """Forgets: the command tells on its own output."""


async def reembed(database: Database, embedder: Embedder) -> int:
    """Gives every chunk a vector of `embedder` and notes that this is complete; returns how many were made.

    Raises:
        DaarionError: the embedder or the database failed; what was made stays.
    """
    space = EmbeddingSpace(embedder.model_version, embedder.dimension)
    spaces, store = EmbeddingSpaces(database), ReembeddingStore(database)
    await spaces.begin(space)
    made = 0
    for area in await spaces.areas():
        made += await _area(store, area, embedder)
    await spaces.finish(space)
    return made


async def prune(database: Database, version: str) -> int:
    """Removes the vectors of all other versions; returns how many."""
    spaces, store = EmbeddingSpaces(database), ReembeddingStore(database)
    removed = 0
    for area in await spaces.areas():
        while gone := await store.prune(area, version, PRUNE_AT_ONCE):
            removed += gone
    await spaces.forget_others()
    return removed


async def _area(store: ReembeddingStore, area: Area, embedder: Embedder) -> int:
    made = after = 0
    while True:
        claim = await store.lacking(area, embedder.model_version, after, BATCH)
        if not claim.chunks:
            return made
        texts = [chunk.content for chunk in claim.chunks]
        tenant = f"{area.microdao_id}/{area.agent_id}"
        await store.write(
            claim,
            await embedder.embed(
                texts, "passage", tenant=tenant, deadline=Deadline.after(EMBED_TIMEOUT_S)
            ),
        )
        made, after = made + len(texts), claim.chunks[-1].chunk_no


@asynccontextmanager
async def _embedder(environment: Environment, engines_file: str) -> AsyncIterator[Embedder]:
    """An endpoint as it is; a local model in this process, beside the one that serves."""
    settings = load_engines(environment, engines_file).embedder
    if isinstance(settings, RemoteEmbedderSettings):
        endpoint = OpenAIEmbedder(settings, environment.secret, environment.proxy_for)
        yield endpoint
        await endpoint.close()
        return
    from deployments.engines.in_process import InProcessEmbedder  # noqa: PLC0415  # loads torch

    yield await asyncio.to_thread(InProcessEmbedder, settings, environment)


async def _run(arguments: argparse.Namespace) -> str:
    environment = read_environment()
    database = Database(
        find_stores(environment).database_url,
        events=_NoEvents(),
        limits=PoolLimits(min_size=1, max_size=2),
    )
    await database.open()
    try:
        if arguments.prune:
            settings = load_engines(environment, arguments.engines_file).embedder
            return f"removed {await prune(database, settings.memory_space.model_version)} vectors of other versions"
        async with _embedder(environment, arguments.engines_file) as embedder:
            return f"made {await reembed(database, embedder)} vectors of {embedder.model_version}: complete"
    finally:
        await database.close()


def main() -> int:
    """Runs the command; returns the exit code. A refusal is one line."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.memory.reembed",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--engines-file",
        default="engines.yaml",
        help="file of the configuration directory with the section `embedder`",
    )
    parser.add_argument(
        "--prune", action="store_true", help="remove the vectors of every other version instead"
    )
    try:
        told = asyncio.run(_run(parser.parse_args()))
    except DaarionError as error:
        sys.stderr.write(f"reembed: {error.message}\n")
        return 1
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
