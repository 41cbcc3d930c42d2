//! Mixtures of Gaussians.

use criterion::Criterion;

pub(crate) fn detectors(criterion: &mut Criterion) {
    let detectors = [("gmm", r#"{"clusters": 10, "components": 20}"#)];
    crate::family(criterion, "mixture", &detectors);
}
