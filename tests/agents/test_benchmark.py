"""The benchmark of the agent pipeline."""

from datetime import UTC, datetime
from uuid import uuid4

from benchmarks.agents.bench import Times, table
from contracts.agents.runs import RunView, StepRecord

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_benchmark_takes_the_models_and_the_tools_time_out():
    steps = [
        StepRecord(kind=kind, started_ms=started, duration_ms=duration)
        for kind, started, duration in [
            ("tool_list", 2, 1),
            ("context", 2, 5),
            ("memory", 7, 20),
            ("llm", 30, 500),
            ("tools", 532, 30),
            ("llm", 563, 100),
            ("reply", 665, 4),
            ("store", 669, 9),
        ]
    ]
    run = RunView(
        id=uuid4(),
        agent_id="agent:a",
        microdao_id="m",
        trigger_id="t",
        entrypoint="cron",
        status="answered",
        attempt=1,
        steps=steps,
        created_at=START,
    )
    times = Times()
    times.add(run, 10.0)
    assert times.added == [
        49.0
    ]  # posted 669 ms after the start and 10 to be accepted, 630 of them the model's and the tools'
    assert times.parts["llm"] == [600.0]
    assert times.parts["recording"] == [20.0]  # 10 to be accepted, and what lies between the steps
    assert table(times)[-2].split()[:3] == ["added", "49.0", "49.0"]
