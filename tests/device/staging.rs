//! Images through pinned memory, and results back, in the order in which they were sent.

use candle_core::{Device, Tensor};
use oodbench_cuda::staging::Staging;
use oodbench_nn::formula;

use crate::{Gpu, values};

const SIZE: (usize, usize) = (5, 7);

fn bytes(batch: usize, n: usize) -> Vec<u8> {
    let len = 3 * n * SIZE.0 * SIZE.1;
    formula::uniform(&batch.to_string(), len, 0.0, 256.0).iter().map(|&x| x as u8).collect()
}

/// What the CPU makes of the same bytes.
fn expected(bytes: &[u8], n: usize, mean: [f32; 3], std: [f32; 3]) -> Tensor {
    let plane = SIZE.0 * SIZE.1;
    let mut out = vec![0.0; bytes.len()];
    for (image, out) in out.chunks_exact_mut(3 * plane).enumerate() {
        for (i, value) in out.iter_mut().enumerate() {
            let (channel, pixel) = (i / plane, i % plane);
            let byte = bytes[3 * (image * plane + pixel) + channel];
            *value = (f32::from(byte) / 255.0 - mean[channel]) / std[channel];
        }
    }
    Tensor::from_vec(out, (n, 3, SIZE.0, SIZE.1), &Device::Cpu).expect("images")
}

#[test]
fn batches_arrive_as_they_were_written() {
    let gpu = Gpu::new();
    let (mean, std) = ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]);
    let most = 3 * 4 * SIZE.0 * SIZE.1;
    let mut staging = Staging::new(&gpu.device, most).expect("pinned memory");
    let mut pending = Vec::new();
    for (batch, n) in [4, 1, 3, 4, 4, 2].into_iter().enumerate() {
        let bytes = bytes(batch, n);
        let xs = staging
            .images(n, SIZE, (mean, std), |place| place.copy_from_slice(&bytes))
            .expect("images");
        // Work between the way there and the way back.
        let doubled = (&xs * 2.0).expect("a product");
        pending.push((batch, n, staging.fetch(&doubled).expect("a copy")));
        if pending.len() == 3 {
            let (batch, n, fetched) = pending.remove(0);
            check(&mut staging, batch, n, fetched, mean, std);
        }
    }
    for (batch, n, fetched) in pending {
        check(&mut staging, batch, n, fetched, mean, std);
    }
}

fn check(
    staging: &mut Staging,
    batch: usize,
    n: usize,
    fetched: oodbench_cuda::staging::Fetched,
    mean: [f32; 3],
    std: [f32; 3],
) {
    let got = staging.take(fetched).expect("a result");
    let expected = (expected(&bytes(batch, n), n, mean, std) * 2.0).expect("a product");
    let got: Vec<f64> = got.into_iter().map(f64::from).collect();
    assert_eq!(got, values(&expected), "batch {batch}");
}

#[test]
fn more_than_was_announced_is_refused() {
    let gpu = Gpu::new();
    let mut staging = Staging::new(&gpu.device, 100).expect("pinned memory");
    let error = staging.images(1, SIZE, ([0.0; 3], [1.0; 3]), |_| ()).expect_err("105 bytes");
    assert!(error.to_string().contains("at most 100 bytes, got 105"), "{error}");
}
