use candle_core::{Device, Tensor, Var};
use oodbench_nn::kernels::*;
use std::time::Instant;
fn best(f: impl Fn()) -> f64 {
    let mut b = f64::MAX;
    for _ in 0..8 {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed().as_secs_f64());
    }
    b
}
fn main() {
    let d = Device::Cpu;
    for (b, ci, co, h) in [
        (8usize, 128usize, 128usize, 32usize),
        (8, 256, 256, 16),
        (64, 32, 32, 16),
        (64, 64, 64, 8),
        (64, 16, 16, 32),
        (64, 64, 64, 32),
        (1, 64, 64, 224),
    ] {
        let x = Var::from_tensor(&Tensor::rand(0f32, 1., (b, ci, h, h), &d).unwrap()).unwrap();
        let w = Var::from_tensor(&Tensor::rand(0f32, 1., (co, ci, 3, 3), &d).unwrap()).unwrap();
        let f = 2.0 * (b * co * h * h * ci * 9) as f64 / 1e9;
        let xd = x.as_detached_tensor();
        let wd = w.as_detached_tensor();
        let a = best(|| {
            let _ = xd.conv2d(&wd, 1, 1, 1, 1).unwrap();
        });
        let o = best(|| {
            let _ = conv2d(&xd, &wd, None, 1, 1).unwrap();
        });
        let ob = best(|| {
            let y = conv2d(&x, &w, None, 1, 1).unwrap();
            let _ = y.sum_all().unwrap().backward().unwrap();
        });
        println!(
            "conv {b} {ci}->{co} {h}: candle {:.1} GF/s ours {:.1}  fwd+bwd {:.1}",
            f / a,
            f / o,
            3. * f / ob
        );
    }
    let x = Tensor::rand(0f32, 1., (8, 128, 32, 32), &d).unwrap();
    let w = Tensor::rand(0f32, 1., 128, &d).unwrap();
    println!(
        "gn {:.2} ms, silu {:.2} ms",
        1e3 * best(|| {
            group_norm(&x, &w, &w, 32, 1e-6, Activation::Silu).unwrap();
        }),
        1e3 * best(|| {
            silu(&x).unwrap();
        })
    );
}
