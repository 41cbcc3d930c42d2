//! The dynamic library that exports the post-hoc detectors.

oodbench_posthoc::export_posthoc!();
