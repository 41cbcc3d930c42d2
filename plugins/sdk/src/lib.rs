//! What a detector is written with: one trait and one macro.
