"""The foreground supervisor: starts PostgreSQL, NATS and Serve, and keeps them alive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

import psutil

from common.tasks import end_tasks
from configs.environment import REPOSITORY, Environment
from contracts.errors import ConfigurationError
from launcher import logs, preflight
from launcher.console import Console, address, graph_ready, stores_ready
from launcher.datadir import DataDir, Part, write_private
from launcher.errors import ServiceFailed, StartRefused
from launcher.instance import Instance, end_processes, leftover
from launcher.nats import NatsServer
from launcher.ports import LOOPBACK
from launcher.postgres import PostgresServer
from launcher.process import ChildProcess, Command, become_subreaper, run_tool
from launcher.readiness import until_ready
from launcher.restarting import LIMIT, Failures
from launcher.serve import ServeGraph, serve_environment

STOPPED, FAILED, REFUSED = 0, 1, 2
_HOUSEKEEPING_S = 5.0
_STRAY_GRACE_S = 5.0
_MIGRATION_TIMEOUT_S = 600.0


@dataclass
class Supervisor:
    """Owns everything it starts, and stops it in the opposite order.

    Args:
        environment: as read from the operator.
        console: shows the progress.
        migrate_argv: migrates the database of `DATABASE_URL`.
        graph_argv: runs the graph until SIGTERM; None starts the stores alone.
        memory_needed: bytes that the graph needs, checked before the start.
    """

    environment: Environment
    console: Console
    migrate_argv: Sequence[str]
    graph_argv: Sequence[str] | None
    memory_needed: int = preflight.MEMORY_NEEDED
    _children: dict[str, ChildProcess] = field(default_factory=dict)
    _addresses: dict[str, str] = field(default_factory=dict)
    _instance: Instance | None = None
    _reported: dict[str, str] = field(default_factory=dict)
    _unrecorded: bool = False
    _stopping: bool = False
    _at_once: bool = False

    def __post_init__(self) -> None:
        self._data_dir = DataDir(self.environment.data_dir)
        self._addresses["PostgreSQL"] = address(self.environment.database_url or "")
        self._addresses["NATS"] = address(self.environment.nats_url or "")

    async def run(self) -> int:
        """Runs until a signal, a refusal or a failure; returns the exit status."""
        become_subreaper()
        main = asyncio.ensure_future(self._live())
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._interrupted, main)
        try:
            await main
        except asyncio.CancelledError:
            self.console.say("stopped; nothing is left running")
        except ConfigurationError as error:
            self.console.plain(f"refused: {error.message}")
            return REFUSED
        except ServiceFailed as error:
            self.console.plain(f"failed: {error.message}")
            return FAILED
        return STOPPED

    def _interrupted(self, main: asyncio.Future[None]) -> None:
        """The first signal stops in order; a second one, or one during a stop, kills all."""
        if self._stopping:
            self._at_once = True
            for child in self._children.values():
                child.signal(child.kill_signal)
        else:
            self._stopping = True
            main.cancel()

    async def _live(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                await self._start(stack)
                await self._watch()
            finally:
                self._stopping = True

    async def _start(self, stack: AsyncExitStack) -> None:
        environment = self.environment
        await self._own_data_dir(stack)
        if self.graph_argv is not None:
            await asyncio.to_thread(preflight.check_graph, environment, self.memory_needed)
        await preflight.check_stores(environment)
        if environment.database_url is not None:
            self.console.say(f"PostgreSQL: using DATABASE_URL ({self._addresses['PostgreSQL']})")
            database_url = environment.database_url
            owner_url = environment.secret("DATABASE_OWNER_URL") or database_url
        else:
            postgres = PostgresServer(self._data_dir.root)
            await self._start_store(postgres, stack)
            database_url, owner_url = postgres.urls.service, postgres.urls.owner
        await self._migrate(owner_url)
        if environment.nats_url is not None:
            self.console.say(f"NATS: using NATS_URL ({self._addresses['NATS']})")
            nats_url = environment.nats_url
        else:
            nats = NatsServer(self._data_dir.root)
            await self._start_store(nats, stack)
            nats_url = nats.url
        urls = {
            "database_url": database_url,
            "database_owner_url": owner_url,
            "nats_url": nats_url,
        }
        write_private(self._data_dir.services, json.dumps(urls, indent=1))
        if self.graph_argv is None:
            self.console.plain(stores_ready(self._data_dir))
        else:
            await self._start_graph(self.graph_argv, database_url, nats_url, stack)
        self._record()

    async def _own_data_dir(self, stack: AsyncExitStack) -> None:
        """Prepares and locks the data directory, and ends what a killed launcher left.

        Raises:
            StartRefused: the directory cannot be written, is full, or belongs to a running one.
        """
        data_dir = self._data_dir
        # First, since on a full disk everything else fails for obscure reasons.
        preflight.check_disk(preflight.free_disk(data_dir.root), data_dir.root)
        await asyncio.to_thread(data_dir.prepare)
        stack.enter_context(data_dir.lock())
        stack.callback(data_dir.clear_run)
        if (killed := leftover(data_dir.run / "instance.json")) is not None:
            if left := await asyncio.to_thread(killed.processes):
                self.console.say(
                    f"an earlier run was killed: ending the {len(left)} processes it left"
                )
            await asyncio.to_thread(self._remove, killed)
        for name in ("postgres", "nats", "serve"):
            await asyncio.to_thread(logs.begin, data_dir.log(name))

    async def _start_store(
        self, server: PostgresServer | NatsServer, stack: AsyncExitStack
    ) -> None:
        self.console.say(f"starting {server.name}")
        await self._start_child(server, f"stopping {server.name}", stack)
        self._addresses[server.name] = f"{LOOPBACK}:{server.port}"
        self.console.say(f"{server.name} is ready on {LOOPBACK}:{server.port}")

    async def _start_child(
        self, child: ChildProcess, stop_text: str, stack: AsyncExitStack
    ) -> None:
        self._children[child.name] = child
        stack.push_async_callback(self._stop, child, stop_text)
        await child.start()

    async def _stop(self, child: ChildProcess, text: str) -> None:
        if child.pid is not None:
            self.console.say(text)
        await child.stop()

    async def _migrate(self, owner_url: str) -> None:
        began = time.monotonic()
        variables = dict(self.environment.variables) | {"DATABASE_URL": owner_url}
        status, output = await run_tool(
            Command(self.migrate_argv, variables, REPOSITORY), timeout_s=_MIGRATION_TIMEOUT_S
        )
        if status != 0:
            raise ServiceFailed(
                f"the migrations failed: {logs.last_line_of(output) or f'status {status}'}"
            )
        self.console.say(f"the database is up to date ({time.monotonic() - began:.1f} s)")

    async def _start_graph(
        self, argv: Sequence[str], database_url: str, nats_url: str, stack: AsyncExitStack
    ) -> None:
        data_dir = self._data_dir
        instance = self._instance = await asyncio.to_thread(Instance.create)
        stack.push_async_callback(asyncio.to_thread, self._remove, instance)
        await asyncio.to_thread(instance.save, data_dir.run / "instance.json")
        await asyncio.to_thread(logs.show_ray, data_dir.logs, instance.directory)
        variables = serve_environment(
            self.environment,
            instance,
            database_url=database_url,
            nats_url=nats_url,
            cpus=os.cpu_count() or 1,
        )
        serve = ServeGraph(argv, variables, cwd=REPOSITORY, log_file=data_dir.log("serve"))
        self._addresses[serve.name] = self.environment.ingress_url
        self.console.say(
            f"starting Serve; logs are in {data_dir.logs} (serve.log, events/, ray/serve/)"
        )
        await self._start_child(serve, "stopping Serve (Ctrl-C again: at once)", stack)

    async def _watch(self) -> None:
        """Keeps everything alive until a watcher fails or this is cancelled."""
        watchers = [self._keep_alive(child) for child in self._children.values()]
        tasks = [asyncio.create_task(each) for each in (*watchers, self._housekeeping())]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_tasks(tasks)

    async def _keep_alive(self, child: ChildProcess) -> None:
        """Restarts the child whenever it ends, after growing delays.

        Raises:
            StartRefused: the graph refused its configuration; a restart cannot help.
            ServiceFailed: the graph keeps dying.
        """
        failures, reason = Failures(), ""
        is_graph = isinstance(child, ServeGraph)
        while True:
            began = time.monotonic()
            announcing = [asyncio.create_task(self._announce(failures))] if is_graph else []
            try:
                status = await child.wait()
            finally:
                await end_tasks(announcing)
            self._record()
            last = await asyncio.to_thread(logs.last_line, child.log_file)
            if is_graph and status == REFUSED:
                raise StartRefused(f"{child.name} refused to start: {last or child.log_file}")
            cause = reason or f"{child.name} {_how(status)}{f' ({last})' if last else ''}"
            now = time.monotonic()
            delay = failures.add(now, now - began)
            if is_graph and failures.too_many:
                raise ServiceFailed(
                    f"{cause}. That was {LIMIT} times: giving up; {child.log_file} has the reason"
                )
            self.console.say(f"{cause}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            if self._instance is not None and is_graph:
                # What the dead process left would hold its successor's ports.
                left = await asyncio.to_thread(self._instance.processes)
                await asyncio.to_thread(self._end, left)
            try:
                await child.start()
            except ServiceFailed as error:
                reason = error.message
            else:
                reason = ""
                self._record()

    async def _announce(self, failures: Failures) -> None:
        """Says that the graph is ready."""
        url, secret = f"{self.environment.ingress_url}/health", self.environment.any_secret
        await until_ready(url, secret, self.console.say)
        failures.succeeded()
        self.console.say("ready")
        self.console.plain(graph_ready(self.environment))

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            with self._tolerated("housekeeping"):
                psutil.wait_procs(self._orphans(), timeout=0)  # leaves no zombies
                await asyncio.to_thread(logs.cut_large_ones, self._data_dir.logs)
            if self._unrecorded:
                self._record()

    def _orphans(self) -> list[psutil.Process]:
        """Returns this process's children but those that it has started itself."""
        own = {child.pid for child in self._children.values()}
        return [each for each in psutil.Process().children() if each.pid not in own]

    def _end(self, processes: list[psutil.Process]) -> None:
        end_processes(processes, 0.0 if self._at_once else _STRAY_GRACE_S)

    def _remove(self, instance: Instance) -> None:
        """Ends what the graph left behind, keeps its logs, and removes its directory."""
        self._end([*instance.processes(), *self._orphans()])
        logs.keep_ray(self._data_dir.logs, instance.directory)
        instance.remove()

    def _record(self) -> None:
        pids = {child.name: child.pid for child in self._children.values()}
        parts = [Part(name, pids.get(name), address) for name, address in self._addresses.items()]
        self._unrecorded = True  # on a full disk, for example: housekeeping retries
        with self._tolerated("recording what runs"):
            self._data_dir.write_parts(parts)
            self._unrecorded = False

    @contextmanager
    def _tolerated(self, action: str) -> Iterator[None]:
        """Reports an OSError once, until the action works again."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if self._reported.get(action) != reason:
                self._reported[action] = reason
                self.console.say(
                    f"{action} failed ({reason}): check {self._data_dir.root}; "
                    "everything keeps running"
                )
        else:
            self._reported.pop(action, None)


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
