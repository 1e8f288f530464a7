"""What several rooms need and no contract says: pure functions and small state machines over the standard library."""
