-- Which spelling an area's lexical terms were made with: when the code spells words differently, upkeep makes them anew.

ALTER TABLE memory_areas ADD COLUMN lexicon text NOT NULL DEFAULT '';

COMMENT ON COLUMN memory_areas.lexicon IS 'Fingerprint of how texts were cut into terms; empty until upkeep first saw the area.';
