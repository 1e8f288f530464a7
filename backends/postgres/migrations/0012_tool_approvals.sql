-- An approval covers what was shown (arguments, context, version of the tool) and ends. The context is kept while a call waits.

ALTER TABLE tool_calls
    ADD COLUMN context text,
    ADD COLUMN approval_digest bytea,
    ADD COLUMN approved_until timestamptz;
