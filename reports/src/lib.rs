//! Leaderboards from records: one exporter per file.
