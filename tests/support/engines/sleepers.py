"""`python -m tests.support.engines.sleepers`: two real engines that take turns on one logical GPU.

Prints what a caller of both sees as one line of JSON per step.
"""
# ruff: noqa: PLC0415  # Ray reads the exported variables when it is imported

import asyncio
import json
import os
import time

from configs.engines.config import load_engines
from configs.environment import export, read_environment
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from deployments.engines.chat_models import model_application
from deployments.graph.serve_defaults import node_options, ray_variables

FILE = "engines.yaml"
BODY = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}


def report(**values):
    print(json.dumps(values), flush=True)


async def states(engines):
    return {name: await engine.stats() for name, engine in engines.items()}


async def until(engines, name, expected):
    async with asyncio.timeout(120):
        while (await states(engines))[name] != expected:
            await asyncio.sleep(0.5)


async def scenario():
    from deployments.engines.sleeping import SleepingEngine

    engines = {
        "first": SleepingEngine("engine-first", "wait"),
        "second": SleepingEngine("engine-second", "fall_back"),
    }
    await asyncio.sleep(2)
    for _ in range(8):
        at_first = await states(engines)
        await asyncio.sleep(0.5)
    report(at_first=at_first)
    started, deadline = time.monotonic(), Deadline.after(120)
    await engines["first"].awake(deadline)
    answer = await engines["first"].chat({"model": "tiny-first", **BODY}, deadline)
    report(answered_by=answer["model"], woken=await engines["first"].stats())
    try:
        await engines["second"].awake(Deadline.after(60))
    except DaarionError as error:
        report(refused=error.type, retry_after_s=error.retry_after_s)
    await until(engines, "second", "awake")  # the first idles out and makes room
    await engines["second"].awake(deadline)
    answer = await engines["second"].chat({"model": "tiny-second", **BODY}, Deadline.after(60))
    report(answered_by=answer["model"], at_last=await states(engines))
    report(seconds=round(time.monotonic() - started))


def main():
    environment = read_environment()
    export(ray_variables(environment))
    import ray
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    from deployments.graph.config import with_live_config
    from deployments.graph.node_fit import fit
    from deployments.graph.ray_patches import serve_client
    from deployments.graph.serve_graph import failed_models, not_running, stop

    ray.init(**node_options(environment))
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["DAARION_PORT"])})
    try:
        models = load_engines(environment, FILE).local_llms
        config = ServeDeploySchema.model_validate(
            {"applications": [model_application(name, it, FILE) for name, it in models.items()]}
        )
        config = with_live_config(config)
        fit(config, ray.cluster_resources())
        serve_client().deploy_apps(config)
        until_s = time.monotonic() + 60
        while not_running() and time.monotonic() < until_s:
            time.sleep(0.5)
        report(failed=[str(error) for error in failed_models().values()], pending=not_running())
        asyncio.run(scenario())
    finally:
        stop()


if __name__ == "__main__":
    main()
