"""The deployment `PythonToolRunner`: sandboxed Python tools, scaled apart from Toolcore.

`PythonToolClient` is Toolcore's client of it. Both exchange plain dicts.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.deployment import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from configs.environment import read_environment
from configs.tools import ConfiguredSecrets, ToolsSettings
from contracts.deadline import Deadline
from contracts.errors import Unavailable
from contracts.tools.api import ISOLATION_TIERS, Execution, IsolationTier, Outcome, ToolDefinition
from deployments.graph.resources import open_event_log
from executors.python.executor import PythonLimits, PythonToolExecutor
from executors.python.packages import Packages, site_packages
from executors.python.tiers import probe_tiers

DEPLOYMENT = "PythonToolRunner"
# The runner ends a call at its deadline; the caller waits so much longer for its answer.
ANSWER_MARGIN_S = 3.0


class PythonRunnerArgs(PythonLimits):
    """Bounds of one replica.

    `tiers` may be used where the host offers them. `libraries` lets tools read this installation's
    site-packages.
    """

    tiers: tuple[IsolationTier, ...] = ISOLATION_TIERS
    libraries: bool = False


class PythonRunnerReplica:
    """Runs each call in a child process, which ends with the call and with this process."""

    async def __init__(self, args: PythonRunnerArgs) -> None:  # type: ignore[misc]  # Serve awaits
        self._args = args
        # Kept over a reload, so that old and new calls together stay within the bound.
        self._slots = asyncio.Semaphore(args.max_concurrent)
        self._environment = read_environment()
        self._events = open_event_log(self._environment, "python-tools")
        self._tiers = await probe_tiers(args.tiers)
        self._events.emit(
            "python_tools.tiers",
            available=list(self._tiers.available),
            refused=dict(self._tiers.refusals),
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes packages, secrets and floor of `tools.yaml`; calls under way keep the old ones."""
        settings = ToolsSettings.model_validate({"tools": [], **user_config})
        packages = Packages(settings.python_packages)
        await asyncio.to_thread(packages.compile)
        self._floor = settings.isolation_floor
        if self._tiers.choose("auto", self._floor) is None:
            self._events.emit(
                "python_tools.refused", floor=self._floor, available=list(self._tiers.available)
            )
        self._executor = PythonToolExecutor(
            packages,
            self._tiers,
            ConfiguredSecrets(
                settings.secrets, self._environment.secret, self._environment.ingress_url
            ),
            self._events,
            limits=self._args,
            libraries=site_packages() if self._args.libraries else (),
            floor=self._floor,
            slots=self._slots,
        )

    async def run(self, call: dict[str, Any]) -> dict[str, Any]:
        """Runs one call from `encode` and returns its outcome; a cancellation kills the child."""
        return asdict(await self._executor.execute(_decoded(call)))

    async def tiers(self) -> dict[str, Any]:
        """Returns the host's tiers, why others are missing, the floor and the default tier."""
        given = {"floor": self._floor, "default": self._tiers.choose("auto", self._floor)}
        return {
            "available": list(self._tiers.available),
            "refused": dict(self._tiers.refusals),
            **given,
        }


class PythonToolClient:
    """Implements the ToolExecutor port over the runner's handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def execute(self, execution: Execution) -> Outcome:
        """Runs the call on a replica; a cancellation kills its child there."""
        response = self._handle.run.remote(encode(execution))
        try:
            async with asyncio.timeout(execution.deadline.remaining() + ANSWER_MARGIN_S):
                return Outcome(**await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except TimeoutError:
            response.cancel()
            return _failed(execution, "timeout", "the Python executor did not answer in time")
        except BackPressureError:
            error = "the Python executor's queue is full: retry shortly"
            return Outcome(False, error_kind="unavailable", error=error, retryable=True, attempts=0)
        except RayTaskError:
            return _failed(
                execution,
                "internal",
                "the Python executor failed in an unexpected way; its log has the details",
            )
        except (RayError, RayServeException):
            return _failed(
                execution,
                "unavailable",
                "the Python executor's replica went away while it ran the tool",
            )

    async def ping(self) -> None:
        """Raises Unavailable when no replica answers, or its host has no tier from the floor up."""
        try:
            tiers = await asyncio.wait_for(self._handle.tiers.remote(), 2.0)
        except (RayError, RayServeException, TimeoutError):
            raise Unavailable("the Python executor does not answer") from None
        if tiers["default"] is None:
            raise Unavailable(
                f"this host offers no isolation tier from `{tiers['floor']}` up: "
                "see isolation_floor in tools.yaml"
            )


def encode(execution: Execution) -> dict[str, Any]:
    """Returns the call as plain values, with the seconds left in place of the deadline."""
    values = vars(execution) | {
        "tool": execution.tool.model_dump(mode="json"),
        "timeout_s": execution.deadline.remaining(),
    }
    del values["deadline"]
    return values


def _decoded(call: dict[str, Any]) -> Execution:
    given = dict(call)
    deadline = Deadline.after(given.pop("timeout_s"))
    return Execution(
        **given | {"tool": ToolDefinition.model_validate(given["tool"])}, deadline=deadline
    )


def _failed(execution: Execution, kind: Any, error: str) -> Outcome:
    """An end at an unknown point: only a tool with network may have had an effect outside."""
    possible = execution.tool.network and execution.tool.effect != "read"
    return Outcome(
        False, error_kind=kind, error=error, retryable=kind != "internal", effect_possible=possible
    )


def runner_config(settings: ToolsSettings) -> dict[str, Any]:
    """Returns the runner's part of the settings.

    Raises:
        ConfigurationError: a package cannot be found.
    """
    Packages(settings.python_packages)
    return settings.model_dump(
        mode="json", include={"python_packages", "secrets", "isolation_floor"}
    )


def python_tool_runner(args: PythonRunnerArgs, user_config: dict[str, Any]) -> Application:
    """Returns the deployment for Toolcore's ingress."""
    deployment = serve.deployment(
        PythonRunnerReplica,
        name=DEPLOYMENT,
        max_ongoing_requests=64,
        max_queued_requests=256,
        graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": 0.1},
        user_config=user_config,
    )
    return deployment.bind(args)
