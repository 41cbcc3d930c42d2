//! `cargo bench -p oodbench-diffusion`: the CIFAR-10 network of DDIM, forward and with gradients.
//!
//! `cargo xtask speed` compares the same network with PyTorch.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use oodbench_diffusion::net::{NetConfig, Pass};
use oodbench_nn::formula::normal;
use oodbench_nn::variables::Variables;

const CONFIG: &str = r#"{
    "struc": "DDIM", "type": "simple", "image_size": 32, "num_classes": 0, "in_channels": 3,
    "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2,
    "attn_resolutions": [16], "dropout": 0.0, "resamp_with_conv": true
}"#;

fn unet(criterion: &mut Criterion) {
    let config: NetConfig = serde_json::from_str(CONFIG).unwrap();
    let model = config.build(Variables::new(0, &Device::Cpu).builder()).unwrap();
    let mut group = criterion.benchmark_group("unet");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for batch in [1, 8] {
        let xs = normal("xs", batch * 3 * 32 * 32);
        let xs = Tensor::from_vec(xs, (batch, 3, 32, 32), &Device::Cpu).unwrap();
        let t = Tensor::full(500f32, batch, &Device::Cpu).unwrap();
        let forward = || model.eps(&xs, &t, None, Pass::Sample).unwrap();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("forward", batch), |bencher| {
            bencher.iter(|| black_box(forward()));
        });
        group.bench_function(BenchmarkId::new("forward-backward", batch), |bencher| {
            bencher.iter(|| {
                let loss = forward().sqr().unwrap().sum_all().unwrap();
                black_box(loss.backward().unwrap())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, unet);
criterion_main!(benches);
