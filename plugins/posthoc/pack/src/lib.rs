//! The dynamic library that exports the post-hoc detectors.
