//! `cargo bench -p oodbench-metrics`: one file per subject.

mod metrics;

criterion::criterion_group!(benches, metrics::ranking);
criterion::criterion_main!(benches);
