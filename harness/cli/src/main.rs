//! The `oodbench` binary.
fn main() {}
