"""From what was measured to what will be: forecasts at the target, and the choice. Reads records, never a live study."""
