//! `cargo bench -p oodbench-posthoc`: fitting and scoring, one file for each family of detectors.
//!
//! Sizes are small, so that all take two minutes; `cargo xtask speed detectors` has the large ones,
//! and the reference beside them.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]

mod distance;
mod logits;
mod mixture;
mod shaping;
mod subspace;
mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{Set, Sizes};

const SIZES: Sizes =
    Sizes { n_train: 2000, n_val: 500, n_test: 1024, n_features: 256, n_classes: 10 };

/// Fits detectors and scores all test images in one batch.
fn family(criterion: &mut Criterion, name: &str, detectors: &[(&str, &str)]) {
    let set = Arc::new(Set::new(SIZES, 0));
    let infos = oodbench_posthoc::infos();
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    for (id, params) in detectors {
        let needs = infos.iter().find(|info| info.id == *id).unwrap().needs;
        let create = || support::create(id, params, &set).unwrap();
        let fitted = || {
            let mut detector = create();
            support::fit(&mut detector, needs, &set).unwrap();
            detector
        };
        group.throughput(Throughput::Elements(SIZES.n_train as u64));
        group.bench_function(format!("{id}/fit"), |bencher| bencher.iter(&fitted));
        let mut detector = fitted();
        group.throughput(Throughput::Elements(SIZES.n_test as u64));
        group.bench_function(format!("{id}/score"), |bencher| {
            let n = SIZES.n_test;
            bencher.iter(|| black_box(support::score(&mut detector, needs, &set, n, n).unwrap()));
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    logits::detectors,
    shaping::detectors,
    distance::detectors,
    subspace::detectors,
    mixture::detectors
);
criterion_main!(benches);
