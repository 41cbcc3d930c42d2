//! `cargo bench -p oodbench-nn`: the kernels against candle's own operations, at the shapes of the
//! CIFAR-10 diffusion network and a batch of 8.
//!
//! `RAYON_NUM_THREADS` sets our threads and `CANDLE_NUM_THREADS` candle's. The throughput that is
//! shown counts the operations of the plain algorithm, so that all ways are on one scale.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Result, Tensor, Var};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use oodbench_nn::formula::uniform;
use oodbench_nn::kernels::{self, Activation};

const BATCH: usize = 8;

/// Channels in and out, side, kernel.
const CONVOLUTIONS: [[usize; 4]; 9] = [
    [128, 128, 32, 3],
    [256, 128, 32, 3],
    [384, 128, 32, 3],
    [256, 256, 16, 3],
    [512, 256, 16, 3],
    [512, 256, 8, 3],
    [256, 256, 4, 3],
    [256, 256, 16, 1],
    [256, 128, 32, 1],
];

fn var(name: &str, shape: &[usize]) -> Var {
    let values = uniform(name, shape.iter().product(), -1.0, 1.0);
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(2));
    group
}

/// Two ways to the same tensor, forward alone, and with the gradients of all that leads to it.
fn compare(
    group: &mut BenchmarkGroup<'_, WallTime>,
    shape: &str,
    ours: impl Fn() -> Result<Tensor>,
    theirs: impl Fn() -> Result<Tensor>,
) {
    let ways: [(&str, &dyn Fn() -> Result<Tensor>); 2] = [("ours", &ours), ("candle", &theirs)];
    for (way, run) in ways {
        group.bench_function(BenchmarkId::new(format!("forward/{way}"), shape), |bencher| {
            bencher.iter(|| black_box(run().unwrap()));
        });
        group.bench_function(BenchmarkId::new(format!("backward/{way}"), shape), |bencher| {
            let loss = run().unwrap().sum_all().unwrap();
            bencher.iter(|| black_box(loss.backward().unwrap()));
        });
    }
}

fn convolution(criterion: &mut Criterion) {
    let mut group = group(criterion, "convolution");
    for [c_in, c_out, side, kernel] in CONVOLUTIONS {
        let operations = 2 * BATCH * c_in * c_out * side * side * kernel * kernel;
        group.throughput(Throughput::Elements(operations as u64));
        let xs = var("xs", &[BATCH, c_in, side, side]);
        let weight = var("weight", &[c_out, c_in, kernel, kernel]);
        let bias = var("bias", &[c_out]);
        compare(
            &mut group,
            &format!("{c_in}-{c_out}-{side}x{side}-k{kernel}"),
            || kernels::conv2d(&xs, &weight, Some(&bias), 1, kernel / 2),
            || {
                let ys = xs.conv2d(&weight, kernel / 2, 1, 1, 1)?;
                ys.broadcast_add(&bias.reshape((1, (), 1, 1))?)
            },
        );
    }
    group.finish();
}

fn group_norm(criterion: &mut Criterion) {
    let mut group = group(criterion, "group-norm-silu");
    for [channels, side] in [[128, 32], [384, 32], [256, 16], [256, 4]] {
        let xs = var("xs", &[BATCH, channels, side, side]);
        let (weight, bias) = (var("weight", &[channels]), var("bias", &[channels]));
        group.throughput(Throughput::Elements(xs.elem_count() as u64));
        compare(
            &mut group,
            &format!("{channels}-{side}x{side}"),
            || kernels::group_norm(&xs, &weight, &bias, 32, 1e-6, Activation::Silu),
            || {
                let grouped = xs.reshape((BATCH, 32, ()))?;
                let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
                let std = (centred.sqr()?.mean_keepdim(2)? + 1e-6)?.sqrt()?;
                let normal = centred.broadcast_div(&std)?.reshape(xs.shape())?;
                let per_channel = (1, channels, 1, 1);
                let scaled = normal.broadcast_mul(&weight.reshape(per_channel)?)?;
                scaled.broadcast_add(&bias.reshape(per_channel)?)?.silu()
            },
        );
    }
    group.finish();
}

fn attention(criterion: &mut Criterion) {
    let mut group = group(criterion, "attention");
    for [channels, side] in [[256, 16], [256, 4], [64, 32]] {
        let positions = side * side;
        let qkv = var("qkv", &[BATCH, 3 * channels, positions]);
        group.throughput(Throughput::Elements(
            (4 * BATCH * channels * positions * positions) as u64,
        ));
        compare(
            &mut group,
            &format!("{channels}-{side}x{side}"),
            || kernels::attention(&qkv, (channels as f64).powf(-0.5)),
            || {
                let part = |i: usize| qkv.narrow(1, i * channels, channels)?.contiguous();
                let queries = part(0)?.transpose(1, 2)?.contiguous()?;
                let scores = (queries.matmul(&part(1)?)? * (channels as f64).powf(-0.5))?;
                let weights = candle_nn::ops::softmax(&scores, 2)?;
                part(2)?.matmul(&weights.transpose(1, 2)?)
            },
        );
    }
    group.finish();
}

criterion_group!(benches, convolution, group_norm, attention);
criterion_main!(benches);
