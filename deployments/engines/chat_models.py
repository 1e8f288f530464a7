"""The chat models beside `local_llm`: their Serve applications, and who calls which of them.

Imports no model library.
"""

from __future__ import annotations

import zlib
from typing import Any

from configs.engines.config import NamedLLMSettings, WhenAsleep
from contracts.shapes import Strict

LOCAL_LLM = "LocalLLM"
PREFIX = "engine-"
_LIVE = {
    "default_sampling", "structured", "min_replicas", "max_replicas", "idle_s", "busy_at",
    "when_asleep",
}  # fmt: skip
UPSCALE_DELAY_S = 15.0
LOOK_BACK_S = 30.0


class ChatModel(Strict):
    """What a caller has to know of an entry in `local_llms`.

    `when_asleep` is None where the model never sleeps.
    """

    application: str
    when_asleep: WhenAsleep | None


def application_of(name: str) -> str:
    """Returns the name of the Serve application of an entry in `local_llms`."""
    return f"{PREFIX}{name}"


def chat_model(name: str, settings: NamedLLMSettings) -> ChatModel:
    """Returns what callers have to know of the model."""
    return ChatModel(
        application=application_of(name),
        when_asleep=None if settings.min_replicas else settings.when_asleep,
    )


def model_application(name: str, settings: NamedLLMSettings, file: str) -> dict[str, Any]:
    """Returns the application of one model. `version` restarts it when its settings change."""
    fixed = settings.model_dump_json(exclude=_LIVE)
    deployment = {
        "name": LOCAL_LLM,
        "autoscaling_config": {
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.busy_at,
            "upscale_delay_s": UPSCALE_DELAY_S,
            "downscale_delay_s": settings.idle_s,
            # Calls count as long as they are in this window, before the delay begins.
            "look_back_period_s": min(LOOK_BACK_S, settings.idle_s),
        },
        # The engine itself answers `overloaded`, and probes get through while it is full.
        "max_ongoing_requests": settings.engine.max_unfinished + 64,
        "max_queued_requests": 512,
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 1,
        "graceful_shutdown_timeout_s": 120,
    }
    return {
        "name": application_of(name),
        "route_prefix": None,
        "import_path": "deployments.engines.model_app:build",
        "args": {
            "settings_file": file,
            "model": name,
            "version": f"{zlib.crc32(fixed.encode()):08x}",
        },
        "deployments": [deployment],
    }
