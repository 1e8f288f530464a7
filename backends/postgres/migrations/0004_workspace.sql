-- The workspace: projects and follow-ups of a microDAO.

CREATE TABLE projects (
    id          uuid NOT NULL,
    microdao_id text NOT NULL CHECK (microdao_id <> ''),
    name        text NOT NULL CHECK (name <> ''),
    description text,
    status      text NOT NULL CHECK (status IN ('active', 'paused', 'done')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (microdao_id, id)
);
CREATE INDEX projects_newest ON projects (microdao_id, created_at DESC, id DESC);

-- idempotency_key is a digest of what the caller gave: one key makes one follow-up, whatever happens in between.
CREATE TABLE follow_ups (
    id              uuid NOT NULL,
    microdao_id     text NOT NULL CHECK (microdao_id <> ''),
    title           text NOT NULL CHECK (title <> ''),
    description     text,
    project_id      uuid,
    assignee        text,
    due_date        date,
    status          text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'done')),
    created_by      text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    idempotency_key bytea NOT NULL,
    fingerprint     bytea NOT NULL,
    PRIMARY KEY (microdao_id, id),
    CONSTRAINT follow_ups_same_key UNIQUE (microdao_id, idempotency_key),
    FOREIGN KEY (microdao_id, project_id) REFERENCES projects (microdao_id, id)
);
CREATE INDEX follow_ups_newest ON follow_ups (microdao_id, created_at DESC, id DESC);
CREATE INDEX follow_ups_by_project ON follow_ups (microdao_id, project_id) WHERE project_id IS NOT NULL;

GRANT SELECT, INSERT ON projects, follow_ups TO daarion_service;

ALTER TABLE projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE projects FORCE ROW LEVEL SECURITY;
CREATE POLICY own_microdao ON projects TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));

ALTER TABLE follow_ups ENABLE ROW LEVEL SECURITY;
ALTER TABLE follow_ups FORCE ROW LEVEL SECURITY;
CREATE POLICY own_microdao ON follow_ups TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));
