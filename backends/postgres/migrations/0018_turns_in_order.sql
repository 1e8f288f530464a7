-- The neighbours of a turn are read in the order of their times and, among equal times, of their arrival. Many turns of one
-- time, as an import leaves them, were sorted for each turn that a search found.

CREATE INDEX agent_memories_in_order ON agent_memories (microdao_id, agent_id, channel_id, created_at, chunk_no);
DROP INDEX agent_memories_by_channel;
