//! Distances to training images, their classes and their relations.

use criterion::Criterion;

pub(crate) fn detectors(criterion: &mut Criterion) {
    let detectors = [
        ("knn", "{}"),
        ("nnguide", "{}"),
        ("relation", "{}"),
        ("cfood", r#"{"alpha": 0.5}"#),
        ("mds", "{}"),
        ("rmds", "{}"),
        ("fdbd", "{}"),
    ];
    crate::family(criterion, "distance", &detectors);
}
