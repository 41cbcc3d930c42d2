//! Detectors that panic, crash, hang and lie, for the tests of the harness.
