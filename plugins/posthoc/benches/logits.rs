//! What reads logits alone.

use criterion::Criterion;

pub(crate) fn detectors(criterion: &mut Criterion) {
    let detectors = [("msp", "{}"), ("ebo", "{}"), ("gen", "{}"), ("klm", "{}"), ("openmax", "{}")];
    crate::family(criterion, "logits", &detectors);
}
