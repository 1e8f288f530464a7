-- Memory of agents. A row belongs to an area: (microdao_id, agent_id). An empty agent_id is the knowledge base of a
-- microDAO, both empty the one that all share; no caller can send an empty id.

DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS vector;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'the extension "vector" is not installed in this database and its owner may not install it; as a superuser run: CREATE EXTENSION vector'
            USING ERRCODE = 'insufficient_privilege';
    WHEN undefined_file OR feature_not_supported THEN
        RAISE EXCEPTION 'this PostgreSQL has no pgvector: install the package of pgvector 0.7 or newer for its version'
            USING ERRCODE = 'feature_not_supported';
END
$$;

-- The record: what was stored, as it was stored.
CREATE TABLE memories (
    microdao_id     text NOT NULL CHECK (microdao_id <> ''),
    agent_id        text NOT NULL CHECK (agent_id <> ''),
    id              text NOT NULL,
    channel_id      text,
    kind            text NOT NULL,
    content         json NOT NULL,
    meta            json NOT NULL,
    created_at      timestamptz NOT NULL,
    stored_at       timestamptz NOT NULL DEFAULT now(),
    fingerprint     bytea NOT NULL,
    idempotency_key bytea,
    PRIMARY KEY (microdao_id, agent_id, id),
    CONSTRAINT memories_same_content UNIQUE (microdao_id, agent_id, fingerprint),
    CONSTRAINT memories_same_key UNIQUE (microdao_id, agent_id, idempotency_key)
);
CREATE INDEX memories_newest ON memories (microdao_id, agent_id, created_at DESC, id DESC);
CREATE INDEX memories_by_channel ON memories (microdao_id, agent_id, channel_id, created_at DESC, id DESC);

-- Short-term: the raw event log, append-only, read per channel in order; retention shortens it.
CREATE TABLE memory_events (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    microdao_id text NOT NULL CHECK (microdao_id <> ''),
    agent_id    text NOT NULL CHECK (agent_id <> ''),
    channel_id  text,
    memory_id   text NOT NULL,
    kind        text NOT NULL,
    content     json NOT NULL,
    created_at  timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX memory_events_by_channel ON memory_events (microdao_id, agent_id, channel_id, created_at, seq);
CREATE INDEX memory_events_by_agent ON memory_events (microdao_id, agent_id, created_at, seq);
CREATE INDEX memory_events_by_memory ON memory_events (microdao_id, agent_id, memory_id);

-- Mid-term and long-term: searchable chunks. New rows land in shard 0; a large area is moved to a shard of its own
-- with an HNSW index. model_version is '' until the chunk is embedded; a second version of a chunk is a second row.
CREATE SEQUENCE memory_chunk_no AS bigint;
CREATE TABLE agent_memories (
    shard         integer NOT NULL DEFAULT 0,
    chunk_no      bigint NOT NULL,
    model_version text NOT NULL DEFAULT '',
    id            text NOT NULL,
    part          integer NOT NULL DEFAULT 0,
    document_id   bigint,
    microdao_id   text NOT NULL,
    agent_id      text NOT NULL,
    channel_id    text,
    kind          text NOT NULL,
    created_at    timestamptz NOT NULL,
    embedding     halfvec,
    content       text NOT NULL,
    meta          json NOT NULL,
    PRIMARY KEY (shard, chunk_no, model_version),
    CHECK (microdao_id <> '' OR agent_id = '')
) PARTITION BY LIST (shard);
ALTER TABLE agent_memories ALTER COLUMN embedding SET STORAGE MAIN;
CREATE TABLE agent_memories_common PARTITION OF agent_memories FOR VALUES IN (0);
CREATE INDEX agent_memories_by_area ON agent_memories (microdao_id, agent_id, model_version);
CREATE INDEX agent_memories_by_id ON agent_memories (microdao_id, agent_id, id);
CREATE INDEX agent_memories_by_channel ON agent_memories (microdao_id, agent_id, channel_id, created_at);
CREATE INDEX agent_memories_by_document ON agent_memories (document_id) WHERE document_id IS NOT NULL;

-- Chunks that wait for their embedding. Holds no contents.
CREATE TABLE memory_queue (
    microdao_id   text NOT NULL,
    agent_id      text NOT NULL,
    chunk_no      bigint NOT NULL,
    memory_id     text NOT NULL,
    claimed_until timestamptz NOT NULL DEFAULT '-infinity',
    refusals      smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (microdao_id, agent_id, chunk_no)
);
CREATE INDEX memory_queue_by_memory ON memory_queue (microdao_id, agent_id, memory_id);

-- What is known of an area: in which shard its rows are besides shard 0, and how much work waits for its upkeep
-- (upper bounds, counted anew before anything is done).
CREATE TABLE memory_areas (
    microdao_id     text NOT NULL,
    agent_id        text NOT NULL,
    shard           integer NOT NULL DEFAULT 0,
    shard_opened_at timestamptz,
    unsharded       bigint NOT NULL DEFAULT 0,
    unmerged        bigint NOT NULL DEFAULT 0,
    removed         bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (microdao_id, agent_id)
);
CREATE SEQUENCE memory_shard_no AS integer;

-- Lexical index: terms of chunks that are not merged yet, and merged postings (see backends/postings.py).
CREATE TABLE memory_terms (
    microdao_id text NOT NULL,
    agent_id    text NOT NULL,
    chunk_no    bigint NOT NULL,
    terms       bytea NOT NULL,
    PRIMARY KEY (microdao_id, agent_id, chunk_no)
);
ALTER TABLE memory_terms ALTER COLUMN terms SET STORAGE EXTERNAL;
CREATE TABLE memory_postings (
    microdao_id text NOT NULL,
    agent_id    text NOT NULL,
    level       smallint NOT NULL,
    bucket      integer NOT NULL,
    data        bytea NOT NULL,
    PRIMARY KEY (microdao_id, agent_id, level, bucket)
);
ALTER TABLE memory_postings ALTER COLUMN data SET STORAGE EXTERNAL;

-- Rolling summaries, and what went into each.
CREATE TABLE memory_summaries (
    microdao_id text NOT NULL CHECK (microdao_id <> ''),
    agent_id    text NOT NULL CHECK (agent_id <> ''),
    channel_id  text NOT NULL,
    size        integer NOT NULL,
    summary     text NOT NULL,
    sources     text[] NOT NULL,
    last_seq    bigint NOT NULL,
    since       timestamptz,
    until       timestamptz,
    model       text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (microdao_id, agent_id, channel_id, size)
);

-- Files of the knowledge base; an empty microdao_id is the shared tree.
CREATE TABLE kb_documents (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    microdao_id text NOT NULL,
    path        text NOT NULL,
    hash        bytea NOT NULL,
    size        bigint NOT NULL,
    modified_ns bigint NOT NULL,
    indexed_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (microdao_id, path)
);

-- Receipts of erasures: counts, no contents.
CREATE TABLE memory_erasures (
    id          text PRIMARY KEY,
    microdao_id text NOT NULL,
    agent_id    text,
    channel_id  text,
    erased      json NOT NULL,
    at          timestamptz NOT NULL DEFAULT now()
);

-- Embedding models: `searched` is the one that questions are embedded with; `complete` once every chunk has its vector.
CREATE TABLE memory_spaces (
    model_version text PRIMARY KEY CHECK (model_version <> ''),
    dimension     integer NOT NULL,
    searched      boolean NOT NULL DEFAULT false,
    complete      boolean NOT NULL DEFAULT false,
    since         timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX memory_spaces_searched ON memory_spaces (searched) WHERE searched;

-- Which process does a periodic job.
CREATE TABLE memory_leases (
    name   text PRIMARY KEY,
    holder text NOT NULL,
    until  timestamptz NOT NULL
);

-- Row security. The settings are made per transaction (backends/database.py); the sub-selects are evaluated once per
-- statement instead of once per row. `daarion.worker` is set by background work that has no tenant of its own: it opens
-- tables without contents, and the writing of knowledge bases.
ALTER TABLE memories ENABLE ROW LEVEL SECURITY;
ALTER TABLE memories FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memories USING (
    microdao_id = (SELECT current_setting('daarion.microdao_id', true)) AND agent_id = (SELECT current_setting('daarion.agent_id', true))
);
ALTER TABLE memory_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory_events FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory_events USING (
    microdao_id = (SELECT current_setting('daarion.microdao_id', true)) AND agent_id = (SELECT current_setting('daarion.agent_id', true))
);
ALTER TABLE memory_summaries ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory_summaries FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory_summaries USING (
    microdao_id = (SELECT current_setting('daarion.microdao_id', true)) AND agent_id = (SELECT current_setting('daarion.agent_id', true))
);

DO $$
DECLARE
    area_table text;
    own text := $own$microdao_id = (SELECT current_setting('daarion.microdao_id', true))
        AND agent_id = (SELECT current_setting('daarion.agent_id', true))
        AND (agent_id <> '' OR (SELECT current_setting('daarion.worker', true)) = 'on')$own$;
    visible text := $visible$(microdao_id = (SELECT current_setting('daarion.microdao_id', true))
            AND agent_id IN ((SELECT current_setting('daarion.agent_id', true)), ''))
        OR (microdao_id = '' AND agent_id = '')$visible$;
BEGIN
    FOREACH area_table IN ARRAY ARRAY['agent_memories', 'memory_terms', 'memory_postings'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', area_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', area_table);
        EXECUTE format('CREATE POLICY visible ON %I FOR SELECT USING (%s)', area_table, visible);
        EXECUTE format('CREATE POLICY added ON %I FOR INSERT WITH CHECK (%s)', area_table, own);
        EXECUTE format('CREATE POLICY changed ON %I FOR UPDATE USING (%s) WITH CHECK (%s)', area_table, own, own);
        EXECUTE format('CREATE POLICY removed ON %I FOR DELETE USING (%s)', area_table, own);
    END LOOP;
    FOREACH area_table IN ARRAY ARRAY['memory_queue', 'memory_areas'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', area_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', area_table);
        EXECUTE format(
            'CREATE POLICY visible ON %I FOR SELECT USING (%s OR (SELECT current_setting(''daarion.worker'', true)) = ''on'')',
            area_table, visible
        );
        EXECUTE format(
            'CREATE POLICY changed ON %I USING ((%s) OR (SELECT current_setting(''daarion.worker'', true)) = ''on'')', area_table, own
        );
    END LOOP;
END
$$;

ALTER TABLE kb_documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE kb_documents FORCE ROW LEVEL SECURITY;
CREATE POLICY visible ON kb_documents FOR SELECT USING (
    microdao_id IN ((SELECT current_setting('daarion.microdao_id', true)), '')
);
CREATE POLICY changed ON kb_documents USING (
    microdao_id = (SELECT current_setting('daarion.microdao_id', true)) AND (SELECT current_setting('daarion.worker', true)) = 'on'
);
ALTER TABLE memory_erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory_erasures FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory_erasures USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));

GRANT SELECT, INSERT, UPDATE, DELETE ON memories, memory_events, agent_memories, memory_queue, memory_areas, memory_terms,
    memory_postings, memory_summaries, kb_documents, memory_leases, memory_spaces TO daarion_service;
GRANT SELECT, INSERT ON memory_erasures TO daarion_service;
GRANT USAGE ON SEQUENCE memory_chunk_no TO daarion_service;

-- Shards are tables and indexes, which only the owner may make. These functions make them for the service, and nothing else.
CREATE FUNCTION memory_open_shard(microdao text, agent text, most integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    shard integer;
    part text;
BEGIN
    IF (SELECT count(*) FROM pg_inherits WHERE inhparent = 'agent_memories'::regclass) > most THEN
        RETURN NULL;
    END IF;
    shard := nextval('memory_shard_no');
    part := 'agent_memories_' || shard;
    EXECUTE format(
        'CREATE TABLE %I (LIKE agent_memories INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE, '
        'CHECK (shard = %s), CHECK (microdao_id = %L AND agent_id = %L))', part, shard, microdao, agent
    );
    -- Whoever reaches the table by its own name finds nothing.
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', part);
    EXECUTE format('ALTER TABLE agent_memories ATTACH PARTITION %I FOR VALUES IN (%s)', part, shard);
    RETURN shard;
END
$$;

CREATE FUNCTION memory_index_shard(shard integer, version text, dimension integer) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET maintenance_work_mem = '256MB' AS $$
DECLARE
    part text := 'agent_memories_' || shard;
    name text := part || '_hnsw_' || substr(md5(version), 1, 8);
BEGIN
    IF to_regclass(quote_ident(name)) IS NULL THEN
        EXECUTE format(
            'CREATE INDEX %I ON %I USING hnsw ((embedding::halfvec(%s)) halfvec_cosine_ops) WITH (m = 16, ef_construction = 100) WHERE model_version = %L',
            name, part, dimension, version
        );
    END IF;
    EXECUTE format('ANALYZE %I', part);
END
$$;

-- Drops an area's shard when nothing is left in it; a shard holds rows of one area only, by its CHECK.
CREATE FUNCTION memory_drop_shard(microdao text, agent text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    number integer;
BEGIN
    PERFORM set_config('daarion.microdao_id', microdao, true), set_config('daarion.agent_id', agent, true);
    SELECT shard INTO number FROM memory_areas WHERE microdao_id = microdao AND agent_id = agent AND shard > 0 FOR UPDATE;
    IF number IS NULL OR EXISTS (SELECT FROM agent_memories AS kept WHERE kept.shard = number AND kept.microdao_id = microdao AND kept.agent_id = agent) THEN
        RETURN false;
    END IF;
    UPDATE memory_areas SET shard = 0, shard_opened_at = NULL WHERE microdao_id = microdao AND agent_id = agent;
    EXECUTE format('DROP TABLE %I', 'agent_memories_' || number);
    RETURN true;
END
$$;

DO $$
DECLARE
    maker text;
BEGIN
    FOREACH maker IN ARRAY ARRAY[
        'memory_open_shard(text, text, integer)', 'memory_index_shard(integer, text, integer)', 'memory_drop_shard(text, text)'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', maker, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', maker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daarion_service', maker);
    END LOOP;
END
$$;

COMMENT ON TABLE agent_memories IS 'Searchable chunks with their embeddings; model_version is empty until a chunk is embedded.';
