"""The foreground supervisor: starts PostgreSQL, NATS and Serve, and keeps them alive."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from configs.environment import REPOSITORY, Environment
from contracts.errors import ConfigurationError
from launcher import logs, messages, preflight, ray_logs, state, strays
from launcher.backoff import FailureWindow
from launcher.console import Console
from launcher.datadir import DataDir
from launcher.errors import ServiceFailed
from launcher.instance import Instance, save
from launcher.preparation import check_graph, own_data_dir
from launcher.process import become_subreaper
from launcher.readiness import until_ready
from launcher.restarting import Service, keep_alive
from launcher.serve import ServeGraph
from launcher.serve_environment import serve_environment
from launcher.state import Part
from launcher.store_set import StoreSet

STOPPED, FAILED, REFUSED = 0, 1, 2
_HOUSEKEEPING_S = 5.0
_STRAY_GRACE_S = 5.0


@dataclass(frozen=True)
class GraphCommand:
    """What runs beside the stores.

    `argv` blocks until SIGTERM; `config_files` are checked before the start, as is `memory_needed`
    (bytes).
    """

    argv: Sequence[str]
    config_files: Sequence[Path] = ()
    memory_needed: int = preflight.MEMORY_NEEDED


@dataclass
class Supervisor:
    """Owns everything it starts, and stops it in the opposite order.

    Args:
        environment: as read from the operator.
        console: shows the progress.
        migrate_argv: migrates the database of `DATABASE_URL`.
        graph: None starts the stores alone.
    """

    environment: Environment
    console: Console
    migrate_argv: Sequence[str]
    graph: GraphCommand | None
    _stop_now: asyncio.Event = field(default_factory=asyncio.Event)
    _serve_started: asyncio.Event = field(default_factory=asyncio.Event)
    _serve: ServeGraph | None = None
    _serve_failures: FailureWindow = field(default_factory=FailureWindow)
    _stop_requested: bool = False
    _unwinding: bool = False
    _unrecorded: bool = False
    _reported: str = ""

    def __post_init__(self) -> None:
        self._data_dir = DataDir(self.environment.data_dir)
        self._stores = StoreSet(
            self.environment, self._data_dir, self.console, self.migrate_argv, self._stop_now
        )

    async def run(self) -> int:
        """Runs until a signal, a refusal or a failure; returns the exit status."""
        become_subreaper()
        main = asyncio.ensure_future(self._live())
        self._handle_signals(main)
        try:
            await main
        except asyncio.CancelledError:
            self.console.say("stopped; nothing is left running")
            return STOPPED
        except ConfigurationError as error:
            self.console.plain(f"refused: {error.message}")
            return REFUSED
        except ServiceFailed as error:
            self.console.plain(f"failed: {error.message}")
            return FAILED
        return STOPPED

    async def _live(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                await self._start(stack)
                await self._watch()
            finally:
                self._unwinding = True

    async def _start(self, stack: AsyncExitStack) -> None:
        lock = await own_data_dir(self._data_dir, self.console.say)
        stack.callback(lock.release)
        stack.callback(state.clear, self._data_dir)
        if self.graph is not None:
            await check_graph(self.environment, self.graph.config_files, self.graph.memory_needed)
        await self._stores.check()
        stack.push_async_callback(self._end_strays)
        await self._stores.start(stack)
        if self.graph is None:
            self.console.plain(messages.stores_ready(self._data_dir))
        else:
            await self._start_graph(self.graph, stack)
        self._record()

    async def _start_graph(self, graph: GraphCommand, stack: AsyncExitStack) -> None:
        instance = await asyncio.to_thread(Instance.create)
        stack.push_async_callback(self._remove_instance, instance)
        await asyncio.to_thread(save, instance, self._data_dir.run / "instance.json")
        await asyncio.to_thread(ray_logs.show, self._data_dir.logs, instance.directory)
        variables = serve_environment(
            self.environment,
            instance,
            database_url=self._stores.database_url,
            nats_url=self._stores.nats_url,
            cpus=os.cpu_count() or 1,
        )
        self._serve = ServeGraph(
            graph.argv, variables, cwd=REPOSITORY, log_file=self._data_dir.log("serve")
        )
        stack.push_async_callback(self._stop_serve, self._serve)
        self.console.say(
            f"starting Serve; logs are in {self._data_dir.logs} (serve.log, events/, ray/serve/)"
        )
        await self._serve.start()

    async def _watch(self) -> None:
        """Keeps everything alive until a watcher fails or this is cancelled."""
        say = self.console.say
        watchers = [self._housekeeping()]
        watchers += [
            keep_alive(
                store,
                log=self._data_dir.log(store.name.lower()),
                say=say,
                ended=self._record,
                started=self._record,
            )
            for store in self._stores.owned
        ]
        if self._serve is not None:
            watchers.append(
                keep_alive(
                    self._serve,
                    log=self._data_dir.log("serve"),
                    say=say,
                    ended=self._record,
                    died=self._serve_died,
                    started=self._serve_restarted,
                    failures=self._serve_failures,
                    refusal=REFUSED,
                )
            )
            watchers.append(self._announce())
        tasks = [asyncio.ensure_future(watcher) for watcher in watchers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _announce(self) -> None:
        """Says that the graph is ready, after the start and after each restart."""
        url = messages.base_url(self.environment)
        while True:
            self._serve_started.clear()
            ready = asyncio.ensure_future(until_ready(f"{url}/health", self.console.say))
            restarted = asyncio.ensure_future(self._serve_started.wait())
            try:
                await asyncio.wait((ready, restarted), return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    self._serve_failures.succeeded()
                    self.console.say("ready")
                    self.console.plain(messages.graph_ready(self.environment))
                    await restarted
            finally:
                ready.cancel()
                restarted.cancel()

    async def _housekeeping(self) -> None:
        reaper = strays.Reaper()
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await asyncio.to_thread(reaper.collect)
                await asyncio.to_thread(logs.cut_large_ones, self._data_dir.logs)
                if self._unrecorded:
                    self._record()
            except OSError as error:
                self._report_failure("housekeeping", error)
            else:
                self._reported = ""

    async def _serve_died(self, _status: int, died_at: float) -> None:
        """Ends what the dead process left, since it would hold the successor's ports."""
        left = await asyncio.to_thread(strays.orphans, self._pids(), died_at)
        await asyncio.to_thread(strays.end, left, _STRAY_GRACE_S)

    def _serve_restarted(self) -> None:
        self._serve_started.set()
        self._record()

    async def _remove_instance(self, instance: Instance) -> None:
        await asyncio.to_thread(ray_logs.keep, self._data_dir.logs, instance.directory)
        await asyncio.to_thread(instance.remove)

    async def _stop_serve(self, serve: ServeGraph) -> None:
        if serve.pid is not None:
            self.console.say("stopping Serve (Ctrl-C again: at once)")
        await serve.stop(self._stop_now)
        left = await asyncio.to_thread(strays.orphans, self._pids())
        await asyncio.to_thread(
            strays.end, left, 0.0 if self._stop_now.is_set() else _STRAY_GRACE_S
        )

    async def _end_strays(self) -> None:
        await asyncio.to_thread(
            strays.end, await asyncio.to_thread(strays.orphans, ()), _STRAY_GRACE_S
        )

    def _pids(self) -> list[int]:
        services: list[Service] = [
            *self._stores.owned,
            *([self._serve] if self._serve is not None else []),
        ]
        return [service.pid for service in services if service.pid is not None]

    def _record(self) -> None:
        parts = self._stores.parts()
        if self._serve is not None:
            parts.append(
                Part(self._serve.name, self._serve.pid, messages.base_url(self.environment))
            )
        try:
            state.write_parts(self._data_dir, parts)
            self._unrecorded = False
        except OSError as error:  # such as a full disk: housekeeping retries
            self._unrecorded = True
            self._report_failure("recording what runs", error)

    def _report_failure(self, what: str, error: OSError) -> None:
        """Reports a failure once, until it works again."""
        reason = error.strerror or type(error).__name__
        line = f"{what} failed ({reason}): check {self._data_dir.root}; everything keeps running"
        if line != self._reported:
            self._reported = line
            self.console.say(line)

    def _handle_signals(self, main: asyncio.Future[None]) -> None:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._interrupted, main)

    def _interrupted(self, main: asyncio.Future[None]) -> None:
        """The first signal stops in order; a second one, or one during that, stops at once."""
        if self._stop_requested or self._unwinding:
            self._stop_now.set()
        else:
            main.cancel()
        self._stop_requested = True
