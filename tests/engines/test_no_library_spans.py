"""Where the graph traces, the engine's processes do not begin to trace by themselves."""

from deployments.engines.placement import process_variables


def test_vllm_gets_no_tracer_of_its_own(monkeypatch):
    from vllm.tracing.otel import init_otel_worker_tracer  # noqa: PLC0415  # loads for seconds

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    for name, value in process_variables(threads=1, cache="c", offline=True).items():
        monkeypatch.setenv(name, value)
    assert init_otel_worker_tracer("vllm.engine_core", "engine_core", "one") is None
