//! What lies outside of the directions in which features vary.

use criterion::Criterion;

pub(crate) fn detectors(criterion: &mut Criterion) {
    let detectors = [("vim", "{}"), ("residual", "{}")];
    crate::family(criterion, "subspace", &detectors);
}
