use candle_core::{Device, Tensor};
use oodbench_nn::kernels::*;
use std::time::Instant;
fn best(f: impl Fn()) -> f64 {
    let mut b = f64::MAX;
    for _ in 0..300 {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed().as_secs_f64());
    }
    b
}
fn main() {
    let d = Device::Cpu;
    let x = Tensor::rand(0f32, 1., (1, 32, 128, 128), &d).unwrap();
    let w = Tensor::rand(0f32, 1., 32, &d).unwrap();
    println!(
        "per element ns: gn {:.2} , silu {:.2} candle silu {:.2} id {:.2}",
        1e9 / 524288.
            * best(|| {
                group_norm(&x, &w, &w, 32, 1e-6, Activation::Silu).unwrap();
            }),
        1e9 / 524288.
            * best(|| {
                silu(&x).unwrap();
            }),
        1e9 / 524288.
            * best(|| {
                x.silu().unwrap();
            }),
        1e9 / 524288.
            * best(|| {
                group_norm(&x, &w, &w, 32, 1e-6, Activation::Identity).unwrap();
            })
    );
}
