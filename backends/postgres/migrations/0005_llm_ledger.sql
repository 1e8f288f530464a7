-- The ledger's attempts: one row per call of a provider, written once with its call and never changed. What a call took is
-- accounted here to the model that took it; `last` marks the attempt whose end was the call's.

ALTER TABLE llm_usage
    ADD COLUMN credential text NOT NULL DEFAULT 'anonymous',
    ADD COLUMN recorder   text NOT NULL DEFAULT '';

CREATE TABLE llm_attempts (
    call_id           uuid NOT NULL,
    number            integer NOT NULL CHECK (number > 0),
    last              boolean NOT NULL,
    request_id        text NOT NULL,
    occurred_at       timestamptz NOT NULL,
    agent_id          text NOT NULL,
    microdao_id       text NOT NULL,
    channel_id        text,
    credential        text NOT NULL,
    logical_model     text NOT NULL,
    provider          text NOT NULL,
    physical_model    text NOT NULL,
    prompt_tokens     bigint NOT NULL CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
    total_tokens      bigint NOT NULL CHECK (total_tokens >= 0),
    cached_tokens     bigint NOT NULL CHECK (cached_tokens >= 0),
    reasoning_tokens  bigint NOT NULL CHECK (reasoning_tokens >= 0),
    latency_ms        double precision NOT NULL CHECK (latency_ms >= 0),
    outcome           text NOT NULL,
    call_outcome      text NOT NULL,
    streamed          boolean NOT NULL,
    estimated         boolean NOT NULL,
    cost_usd          numeric(18, 9) CHECK (cost_usd >= 0),
    recorder          text NOT NULL,
    recorded_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (call_id, number)
);

CREATE INDEX llm_attempts_by_microdao ON llm_attempts (microdao_id, occurred_at);
CREATE INDEX llm_attempts_by_agent ON llm_attempts (agent_id, occurred_at);
CREATE INDEX llm_attempts_by_time ON llm_attempts USING brin (occurred_at);

GRANT SELECT, INSERT ON llm_attempts TO daarion_service;

INSERT INTO llm_attempts (
    call_id, number, last, request_id, occurred_at, agent_id, microdao_id, channel_id, credential, logical_model, provider, physical_model,
    prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens,
    latency_ms, outcome, call_outcome, streamed, estimated, cost_usd, recorder, recorded_at
)
SELECT
    id, 1, true, request_id, occurred_at, agent_id, microdao_id, channel_id, credential, logical_model, provider, physical_model,
    prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens,
    latency_ms, outcome, outcome, streamed, estimated, cost_usd, recorder, recorded_at
FROM llm_usage;

-- What the attempts cost, by subject, UTC day and recorder; added to by the statement that writes them. Limits of money are read
-- here: a month of a busy subject is some hundred rows, not some million attempts.
CREATE TABLE llm_spending (
    kind     text NOT NULL CHECK (kind IN ('agent', 'microdao', 'credential')),
    subject  text NOT NULL,
    day      date NOT NULL,
    recorder text NOT NULL,
    cost_usd numeric(24, 9) NOT NULL CHECK (cost_usd >= 0),
    PRIMARY KEY (kind, subject, day, recorder)
);

GRANT SELECT, INSERT ON llm_spending TO daarion_service;
GRANT UPDATE (cost_usd) ON llm_spending TO daarion_service;

INSERT INTO llm_spending (kind, subject, day, recorder, cost_usd)
SELECT subjects.kind, subjects.subject, (occurred_at AT TIME ZONE 'UTC')::date, recorder, sum(cost_usd)
FROM llm_attempts
CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('microdao', microdao_id), ('credential', credential)) AS subjects (kind, subject)
WHERE cost_usd > 0
GROUP BY 1, 2, 3, 4;

-- Calls whose `usage.llm` event could not be published when they were recorded.
CREATE TABLE llm_usage_outbox (
    id       uuid PRIMARY KEY,
    added_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX llm_usage_outbox_age ON llm_usage_outbox (added_at);

GRANT SELECT, INSERT, DELETE ON llm_usage_outbox TO daarion_service;
-- FOR UPDATE, by which replicas share the work, asks for it.
GRANT UPDATE (added_at) ON llm_usage_outbox TO daarion_service;

DROP VIEW billing_llm_usage;

CREATE VIEW usage_llm_billing WITH (security_invoker = true) AS
SELECT
    (occurred_at AT TIME ZONE 'UTC')::date   AS day,
    microdao_id,
    agent_id,
    credential,
    logical_model,
    provider,
    physical_model,
    count(*) FILTER (WHERE last)             AS calls,
    count(*) FILTER (WHERE last AND call_outcome <> 'ok') AS errors,
    count(*)                                 AS attempts,
    sum(prompt_tokens)::bigint               AS prompt_tokens,
    sum(completion_tokens)::bigint           AS completion_tokens,
    sum(total_tokens)::bigint                AS total_tokens,
    sum(cached_tokens)::bigint               AS cached_tokens,
    sum(reasoning_tokens)::bigint            AS reasoning_tokens,
    sum(total_tokens) FILTER (WHERE estimated)::bigint AS estimated_tokens,
    sum(cost_usd)                            AS cost_usd,
    count(*) FILTER (WHERE cost_usd IS NULL AND total_tokens > 0) AS attempts_without_price
FROM llm_attempts
GROUP BY 1, 2, 3, 4, 5, 6, 7;

COMMENT ON VIEW usage_llm_billing IS
    'For the billing engine: what each model took per UTC day, microDAO, agent and credential. Tokens and cost are those of every attempt, '
    'accounted to the model that was called; calls are counted where they ended. cost_usd sums the attempts that had a price and is null '
    'where none had; attempts_without_price counts the others. A day is final once no replica holds unsent journals of it.';

GRANT SELECT ON usage_llm_billing TO daarion_service;
