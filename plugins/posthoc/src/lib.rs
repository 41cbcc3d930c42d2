//! The post-hoc detectors, one file each.
