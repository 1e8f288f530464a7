-- The trace that a call was part of, as OpenTelemetry names it: 32 hexadecimal digits. There is no index, because a trace is
-- looked for within a range of times, and the ids of a busy graph would fill one that nothing else reads.

ALTER TABLE llm_usage ADD COLUMN trace_id text;
ALTER TABLE llm_attempts ADD COLUMN trace_id text;
