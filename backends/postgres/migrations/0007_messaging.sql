-- The workspace's channels: members, messages, what the agents' runs tell, and the outbox of invocations.

-- `position` counts what happened in the channel; whoever adds something holds the row's lock, so that positions are
-- taken and become visible in one order, and `last_at` never repeats.
CREATE TABLE channels (
    microdao_id text NOT NULL CHECK (microdao_id <> ''),
    id          uuid NOT NULL UNIQUE,
    name        text NOT NULL CHECK (name <> ''),
    position    bigint NOT NULL DEFAULT 0,
    last_at     timestamptz NOT NULL DEFAULT '-infinity',
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (microdao_id, id)
);
CREATE INDEX channels_newest ON channels (microdao_id, created_at DESC, id DESC);
CREATE INDEX channels_newest_of_all ON channels (created_at DESC, id DESC);

CREATE TABLE channel_members (
    microdao_id text NOT NULL,
    channel_id  uuid NOT NULL,
    member_id   text NOT NULL CHECK (member_id <> ''),
    number      bigint GENERATED ALWAYS AS IDENTITY,
    added_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (channel_id, member_id),
    FOREIGN KEY (microdao_id, channel_id) REFERENCES channels (microdao_id, id)
);
CREATE INDEX channel_members_channels ON channel_members (microdao_id, member_id, channel_id);

-- idempotency_key is a digest of sender and key: one key of a sender makes one message of a channel.
CREATE TABLE channel_messages (
    id              uuid NOT NULL UNIQUE,
    microdao_id     text NOT NULL,
    channel_id      uuid NOT NULL,
    position        bigint NOT NULL,
    sender_id       text NOT NULL,
    sender_type     text NOT NULL CHECK (sender_type IN ('human', 'agent')),
    body            text NOT NULL,
    run_id          text,
    idempotency_key bytea,
    fingerprint     bytea NOT NULL,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (channel_id, position),
    CONSTRAINT channel_messages_same_key UNIQUE (channel_id, idempotency_key),
    FOREIGN KEY (microdao_id, channel_id) REFERENCES channels (microdao_id, id)
);

-- What is shown live beside the messages; old rows are removed.
CREATE TABLE channel_events (
    microdao_id text NOT NULL,
    channel_id  uuid NOT NULL,
    position    bigint NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('run.step', 'invocation.failed')),
    event_key   bytea NOT NULL,
    payload     json NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (channel_id, position),
    CONSTRAINT channel_events_same_key UNIQUE (channel_id, event_key),
    FOREIGN KEY (microdao_id, channel_id) REFERENCES channels (microdao_id, id)
);
CREATE INDEX channel_events_by_time ON channel_events USING brin (created_at);

-- Written in the transaction of the message. due_at is the next attempt, or the end of the lease of the one under way.
CREATE TABLE invocation_outbox (
    id          uuid PRIMARY KEY,
    microdao_id text NOT NULL,
    channel_id  uuid NOT NULL,
    message_id  uuid NOT NULL REFERENCES channel_messages (id),
    agent_id    text NOT NULL,
    state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts    integer NOT NULL DEFAULT 0,
    owner       uuid,
    due_at      timestamptz NOT NULL DEFAULT now(),
    reason      text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    settled_at  timestamptz,
    CONSTRAINT invocation_outbox_once UNIQUE (message_id, agent_id)
);
CREATE INDEX invocation_outbox_due ON invocation_outbox (due_at) WHERE state = 'pending';
CREATE INDEX invocation_outbox_by_channel ON invocation_outbox (microdao_id, channel_id, created_at DESC);
CREATE INDEX invocation_outbox_settled ON invocation_outbox (settled_at) WHERE state <> 'pending';

GRANT SELECT, INSERT, UPDATE (position, last_at) ON channels TO daarion_service;
GRANT SELECT, INSERT, DELETE ON channel_members TO daarion_service;
GRANT SELECT, INSERT ON channel_messages, channel_events TO daarion_service;
GRANT SELECT, INSERT, UPDATE ON invocation_outbox TO daarion_service;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['channels', 'channel_members', 'channel_messages', 'channel_events', 'invocation_outbox'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY own_microdao ON %I TO daarion_service'
            ' USING (microdao_id = (SELECT current_setting(''daarion.microdao_id'', true)))'
            ' WITH CHECK (microdao_id = (SELECT current_setting(''daarion.microdao_id'', true)))',
            name
        );
    END LOOP;
END
$$;

-- The functions below do across microDAOs what no single one could ask for, and nothing else; they run as the owner.
CREATE POLICY upkeep ON channels TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON channel_members TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON channel_events TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON invocation_outbox TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE FUNCTION messaging_tenant(of_channel uuid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT microdao_id FROM channels WHERE id = of_channel
$$;

CREATE FUNCTION messaging_positions(of_channels uuid[]) RETURNS TABLE (id uuid, "position" bigint)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT channels.id, channels.position FROM channels WHERE channels.id = ANY (of_channels)
$$;

CREATE FUNCTION messaging_all_channels(of_member text, after_time timestamptz, after_id uuid, at_most integer)
RETURNS TABLE (id uuid, microdao_id text, name text, created_at timestamptz, members text[])
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT channels.id, channels.microdao_id, channels.name, channels.created_at,
           ARRAY(SELECT member_id FROM channel_members WHERE channel_id = channels.id ORDER BY number)
    FROM channels
    WHERE (after_time IS NULL OR (channels.created_at, channels.id) < (after_time, after_id))
      AND (of_member IS NULL OR EXISTS (SELECT FROM channel_members WHERE channel_id = channels.id AND member_id = of_member))
    ORDER BY channels.created_at DESC, channels.id DESC
    LIMIT at_most
$$;

-- Materialised, because a sub-select that skips locked rows finds others each time a join runs it again.
CREATE FUNCTION messaging_claim_invocations(new_owner uuid, at_most integer, lease_seconds double precision)
RETURNS TABLE (id uuid, microdao_id text, channel_id uuid, message_id uuid, agent_id text, attempts integer, age_s double precision)
LANGUAGE sql SECURITY DEFINER AS $$
    WITH due AS MATERIALIZED (
        SELECT waiting.id FROM invocation_outbox AS waiting
        WHERE waiting.state = 'pending' AND waiting.due_at <= now()
        ORDER BY waiting.due_at
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE invocation_outbox AS claimed
    SET owner = new_owner, attempts = claimed.attempts + 1, due_at = now() + make_interval(secs => lease_seconds)
    FROM due
    WHERE claimed.id = due.id
    RETURNING claimed.id, claimed.microdao_id, claimed.channel_id, claimed.message_id, claimed.agent_id, claimed.attempts,
        extract(epoch FROM now() - claimed.created_at)::double precision
$$;

CREATE FUNCTION messaging_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH events AS (
        DELETE FROM channel_events WHERE (channel_id, position) IN (
            SELECT channel_id, position FROM channel_events WHERE created_at < now() - older_than LIMIT at_most
        )
        RETURNING 1
    ), settled AS (
        DELETE FROM invocation_outbox WHERE id IN (
            SELECT id FROM invocation_outbox WHERE state <> 'pending' AND settled_at < now() - older_than LIMIT at_most
        )
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM settled)
$$;

DO $$
DECLARE
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'messaging_tenant(uuid)',
        'messaging_positions(uuid[])',
        'messaging_all_channels(text, timestamptz, uuid, integer)',
        'messaging_claim_invocations(uuid, integer, double precision)',
        'messaging_purge(interval, integer)'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daarion_service', signature);
    END LOOP;
END
$$;
