//! A device whose memory is nearly full: what does not fit is named, with what does.
//!
//! The tests start themselves again in a process of their own: they take nearly all of the device's
//! memory, and the stand-in for a driver is told to have little of it.

use std::process::Command;

use candle_core::{DType, Device, Tensor};
use oodbench_cuda::memory::{give_back, kept, memory};
use oodbench_diffusion::batch::{Evaluation, Limit};
use oodbench_diffusion::denoise::{DenoiseError, Denoiser, Images, Subjects, network};
use oodbench_diffusion::sampler::{Indexing, Method};
use oodbench_nn::device::is_out_of_memory;

use crate::Gpu;

const SIDE: usize = 16;

/// Bytes of one activation of the network's first level, of one row.
const ROW: u64 = 32 * (SIDE * SIDE) as u64 * 4;

const CHILD: &str = "OODBENCH_TEST_CHILD";

/// Whether this is the process that runs the test `name`; otherwise that is started, and must succeed.
fn is_child(name: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    // The parent keeps other tests from the device meanwhile.
    let _gpu = Gpu::new();
    let test = std::env::current_exe().expect("this test");
    let output = Command::new(test)
        .args(["--exact", &format!("memory::{name}"), "--nocapture"])
        .env(CHILD, "1")
        .env("STANDIN_MEMORY", (1u64 << 30).to_string())
        .output()
        .expect("the test starts again");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{stdout}");
    false
}

/// Takes all memory but so much.
fn fill(device: &Device, leave: u64) -> Vec<Tensor> {
    const PIECE: u64 = 1 << 30;
    give_back(device).expect("memory");
    let mut left = memory(device).expect("memory").free.saturating_sub(leave);
    let mut taken = Vec::new();
    while left > 0 {
        let bytes = left.min(PIECE);
        taken.push(Tensor::zeros(bytes as usize, DType::U8, device).expect("memory"));
        left -= bytes;
    }
    taken
}

/// What a full device leaves: a driver has needs of its own.
fn left(device: &Device) -> u64 {
    let total = memory(device).expect("memory").total;
    if total > 4 << 30 { 1 << 30 } else { 96 << 20 }
}

#[test]
fn a_batch_that_does_not_fit_is_named_with_one_that_does() {
    if !is_child("a_batch_that_does_not_fit_is_named_with_one_that_does") {
        return;
    }
    let gpu = Gpu::new();
    let loaded = network::untrained(SIDE, 0, &gpu.device).expect("a network");
    let sample = |batch: usize| {
        let values = vec![0.5; batch * 3 * SIDE * SIDE];
        let noise = vec![0.1; values.len()];
        let denoiser = Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: Method::Ddim,
            steps: 10,
            indexing: Indexing::Reference,
            beta: 0.0,
            batch,
            device: &gpu.device,
        };
        let images = Images::new(&values, (SIDE, SIDE)).expect("images");
        let classes = vec![0; batch];
        let subjects = Subjects { images, classes: &classes, noise: &noise, repeats: 1 };
        denoiser.sample(&subjects, 50, None, &mut || Ok(()))
    };
    // Plans and kernels come first.
    sample(2).expect("two rows");
    let leave = left(&gpu.device);
    let _taken = fill(&gpu.device, leave);
    let many = (leave / ROW) as usize;
    let error = sample(many).expect_err("one activation takes all there is");
    let DenoiseError::OutOfMemory { batch, fits } = error else { panic!("{error}") };
    let fits = fits.expect("some rows fit");
    assert_eq!(batch, many);
    assert!(fits < many && many / fits * fits <= many, "{fits} of {many}");
    sample(fits).expect("as many as were said to fit");
}

#[test]
fn an_automatic_batch_fits_and_leaves_something() {
    if !is_child("an_automatic_batch_fits_and_leaves_something") {
        return;
    }
    let gpu = Gpu::new();
    let loaded = network::untrained(SIDE, 2, &gpu.device).expect("a network");
    let evaluation = Evaluation {
        model: loaded.model.as_ref(),
        beta: 2.0,
        size: (SIDE, SIDE),
        device: &gpu.device,
    };
    let found = evaluation.largest(32).expect("a batch");
    assert!(found.batch.is_power_of_two() && (8..=32).contains(&found.batch), "{found:?}");
    assert!(matches!(found.limit, Limit::Speed | Limit::Images), "{found:?}");
    // With less than the headroom free, not even the smallest batch may grow.
    let total = memory(&gpu.device).expect("memory").total;
    let _taken = fill(&gpu.device, total / 20);
    let found = evaluation.largest(32).expect("a batch");
    assert_eq!(found.limit, Limit::Memory, "{found:?}");
}

#[test]
fn what_is_freed_is_kept_until_it_is_given_back() {
    let gpu = Gpu::new();
    let free = || memory(&gpu.device).expect("memory").free;
    give_back(&gpu.device).expect("memory");
    assert_eq!(kept(&gpu.device).expect("a pool"), u64::MAX, "all of it");
    let before = free();
    let bytes = 64 << 20;
    let taken = Tensor::zeros(bytes, DType::U8, &gpu.device).expect("memory");
    assert!(free() + bytes as u64 <= before, "taken");
    drop(taken);
    give_back(&gpu.device).expect("memory");
    assert!(free() + bytes as u64 > before, "given back");
}

#[test]
fn a_full_memory_is_recognised() {
    let gpu = Gpu::new();
    let bytes = 2 * memory(&gpu.device).expect("memory").total as usize;
    let error = Tensor::zeros(bytes, DType::U8, &gpu.device).expect_err("twice the memory");
    assert!(is_out_of_memory(&error), "{error}");
}
