"""Embeds the stored memory with another model, while the graph runs.

1. Copy `engines.yaml` to, say, `engines.next.yaml`, write the new embedder with a new `version`
   there, and run `python -m deployments.memory.reembed --engines-file engines.next.yaml`. Searches
   use the old vectors meanwhile. After an interruption run it again.
2. Replace `engines.yaml` by the copy and redeploy `engines` and `memory`. Searches use the new
   vectors from then on; ordinary ingestion embeds what was stored in between.
3. `python -m deployments.memory.reembed --prune` removes the old vectors.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from backends.memory.embedding_spaces import EmbeddingSpaces
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
        """Drops events: the command reports on its own output."""


async def reembed(database: Database, embedder: Embedder) -> int:
    """Gives every chunk a vector of `embedder`, and then marks the space as complete.

    Returns how many vectors were made.

    Raises:
        DaarionError: the embedder or the database failed; vectors made so far stay.
    """
    space = EmbeddingSpace(embedder.model_version, embedder.dimension)
    spaces = EmbeddingSpaces(database)
    await spaces.note(space, complete=False)
    made = 0
    for area in await spaces.areas():
        made += await _area(spaces, area, embedder)
    await spaces.note(space, complete=True)
    return made


async def prune(database: Database, version: str) -> int:
    """Removes the vectors of all versions but one; returns how many."""
    spaces = EmbeddingSpaces(database)
    removed = 0
    for area in await spaces.areas():
        while gone := await spaces.prune(area, version, PRUNE_AT_ONCE):
            removed += gone
    await spaces.forget_others()
    return removed


async def _area(spaces: EmbeddingSpaces, area: Area, embedder: Embedder) -> int:
    made = after = 0
    while True:
        claim = await spaces.lacking(area, embedder.model_version, after, BATCH)
        if not claim.chunks:
            return made
        texts = [chunk.content for chunk in claim.chunks]
        tenant = f"{area.microdao_id}/{area.agent_id}"
        await spaces.write(
            claim,
            await embedder.embed(
                texts, "passage", tenant=tenant, deadline=Deadline.after(EMBED_TIMEOUT_S)
            ),
        )
        made, after = made + len(texts), claim.chunks[-1].chunk_no


@asynccontextmanager
async def _embedder(environment: Environment, engines_file: str) -> AsyncIterator[Embedder]:
    """Yields the configured embedder; a local model is loaded into this process."""
    settings = load_engines(environment, engines_file).embedder
    if isinstance(settings, RemoteEmbedderSettings):
        endpoint = OpenAIEmbedder(settings, environment.secret, environment.proxy_for)
        yield endpoint
        await endpoint.close()
        return
    from deployments.engines.sentence_encoder import InProcessEmbedder  # noqa: PLC0415  # loads torch

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
            removed = await prune(database, settings.memory_space.model_version)
            return f"removed {removed} vectors of other versions"
        async with _embedder(environment, arguments.engines_file) as embedder:
            made = await reembed(database, embedder)
            return f"made {made} vectors of {embedder.model_version}: complete"
    finally:
        await database.close()


def main() -> int:
    """Returns the exit status. A refusal is one line on stderr."""
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
        report = asyncio.run(_run(parser.parse_args()))
    except DaarionError as error:
        sys.stderr.write(f"reembed: {error.message}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
