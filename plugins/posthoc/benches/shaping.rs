//! What changes features on their way to the head.

use criterion::Criterion;

pub(crate) fn detectors(criterion: &mut Criterion) {
    let detectors =
        [("react", "{}"), ("ash", "{}"), ("scale", "{}"), ("dice", "{}"), ("dropout", "{}")];
    crate::family(criterion, "shaping", &detectors);
}
