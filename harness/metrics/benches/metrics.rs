//! All metrics of one data set, the sort included, at several sizes with and without ties.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use oodbench_metrics::OodMetrics;

pub(crate) fn ranking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ood_metrics");
    group.warm_up_time(Duration::from_secs(1));
    for n_scores in [10_000, 1_000_000, 10_000_000_usize] {
        let distinct = Scores::new(n_scores, |score| score);
        let tied = Scores::new(n_scores, |score| (score * 1000.0).round() / 1000.0);
        group.sample_size(if n_scores > 1_000_000 { 10 } else { 20 });
        group.throughput(Throughput::Elements(n_scores as u64));
        for (name, scores) in [("distinct", &distinct), ("tied", &tied)] {
            let (id, ood) = (&scores.id, &scores.ood);
            group.bench_function(BenchmarkId::new(format!("f32/{name}"), n_scores), |bencher| {
                bencher.iter(|| OodMetrics::new(black_box(id), black_box(ood)));
            });
        }
        let id: Vec<f64> = distinct.id.iter().copied().map(f64::from).collect();
        let ood: Vec<f64> = distinct.ood.iter().copied().map(f64::from).collect();
        group.bench_function(BenchmarkId::new("f64/distinct", n_scores), |bencher| {
            bencher.iter(|| OodMetrics::new(black_box(&id), black_box(&ood)));
        });
    }
    group.finish();
}

/// Overlapping scores of which 60 % are ID. Bell-shaped, so that few `f32` of ten million are equal.
struct Scores {
    id: Vec<f32>,
    ood: Vec<f32>,
}

impl Scores {
    fn new(n_scores: usize, shape: impl Fn(f32) -> f32) -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut uniform = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut bell = |centre: f32| (0..4).map(|_| uniform()).sum::<f32>() - 2.0 + centre;
        let n_id = n_scores * 6 / 10;
        Self {
            id: (0..n_id).map(|_| shape(bell(0.0))).collect(),
            ood: (n_id..n_scores).map(|_| shape(bell(0.5))).collect(),
        }
    }
}
