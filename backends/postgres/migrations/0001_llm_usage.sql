-- The ledger of LLM calls: one row per call, written once and never changed.

CREATE TABLE llm_usage (
    id                uuid PRIMARY KEY,
    request_id        text NOT NULL,
    occurred_at       timestamptz NOT NULL,
    agent_id          text NOT NULL,
    microdao_id       text NOT NULL,
    channel_id        text,
    logical_model     text NOT NULL,
    provider          text NOT NULL,
    physical_model    text NOT NULL,
    prompt_tokens     bigint NOT NULL CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
    total_tokens      bigint NOT NULL CHECK (total_tokens >= 0),
    cached_tokens     bigint NOT NULL CHECK (cached_tokens >= 0),
    reasoning_tokens  bigint NOT NULL CHECK (reasoning_tokens >= 0),
    latency_ms        double precision NOT NULL CHECK (latency_ms >= 0),
    ttft_ms           double precision CHECK (ttft_ms >= 0),
    outcome           text NOT NULL,
    streamed          boolean NOT NULL,
    estimated         boolean NOT NULL,
    attempts          integer NOT NULL CHECK (attempts >= 0),
    cost_usd          numeric(18, 9) CHECK (cost_usd >= 0),
    recorded_at       timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX llm_usage_by_microdao ON llm_usage (microdao_id, occurred_at);
CREATE INDEX llm_usage_by_agent ON llm_usage (agent_id, occurred_at);
CREATE INDEX llm_usage_by_time ON llm_usage USING brin (occurred_at);

GRANT SELECT, INSERT ON llm_usage TO daarion_service;

CREATE VIEW billing_llm_usage WITH (security_invoker = true) AS
SELECT
    (occurred_at AT TIME ZONE 'UTC')::date AS day,
    microdao_id,
    agent_id,
    logical_model,
    provider,
    physical_model,
    count(*)                                 AS calls,
    count(*) FILTER (WHERE outcome <> 'ok')  AS errors,
    sum(prompt_tokens)::bigint               AS prompt_tokens,
    sum(completion_tokens)::bigint           AS completion_tokens,
    sum(total_tokens)::bigint                AS total_tokens,
    sum(cached_tokens)::bigint               AS cached_tokens,
    sum(reasoning_tokens)::bigint            AS reasoning_tokens,
    sum(cost_usd)                            AS cost_usd,
    count(*) FILTER (WHERE cost_usd IS NULL) AS calls_without_price
FROM llm_usage
GROUP BY 1, 2, 3, 4, 5, 6;

COMMENT ON VIEW billing_llm_usage IS
    'For the billing engine: LLM calls per UTC day, microDAO, agent and model. cost_usd sums the calls that had a price; '
    'calls_without_price counts the others. A day is final once no replica holds unsent journals of it.';

GRANT SELECT ON billing_llm_usage TO daarion_service;
