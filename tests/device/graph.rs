//! What may be recorded as a CUDA graph, and what is refused without harm.

use candle_core::{Device, Result, Tensor};
use oodbench_cuda::graph::Replay;

use crate::{Gpu, values};

fn ramp(device: &Device, n: u32) -> Tensor {
    upload(device, n).expect("a ramp")
}

fn upload(device: &Device, n: u32) -> Result<Tensor> {
    let numbers: Vec<f32> = (0..n).map(|i| i as f32).collect();
    Tensor::from_vec(numbers, n as usize, device)
}

/// `to = from^2 + 1`, with a tensor that comes and goes.
fn squares(from: &Tensor, to: &Tensor) -> Result<()> {
    to.slice_set(&(from.sqr()? + 1.0)?, 0, 0)
}

#[test]
fn replayed_work_reads_its_inputs_anew() {
    let gpu = Gpu::new();
    let from = ramp(&gpu.device, 100);
    let to = from.zeros_like().expect("zeros");
    let mut replay = Replay::record(&gpu.device, || squares(&from, &to)).expect("a recording");
    for factor in [1.0, 3.0] {
        let input = (ramp(&gpu.device, 100) * factor).expect("input");
        from.slice_set(&input, 0, 0).expect("a copy");
        replay.launch().expect("a launch");
        let expected: Vec<f64> = (0..100).map(|i| (f64::from(i) * factor).powi(2) + 1.0).collect();
        assert_eq!(values(&to), expected);
    }
}

#[test]
fn a_copy_from_the_host_cannot_be_recorded_and_does_no_harm() {
    let gpu = Gpu::new();
    let from = ramp(&gpu.device, 5000);
    let to = from.zeros_like().expect("zeros");
    let copying = || squares(&upload(&gpu.device, 5000)?, &to);
    let error = Replay::record(&gpu.device, copying).err().expect("a refusal");
    assert!(!error.to_string().is_empty());
    // The device works on, and records what can be.
    squares(&from, &to).expect("work");
    let mut replay = Replay::record(&gpu.device, || squares(&from, &to)).expect("a recording");
    replay.launch().expect("a launch");
    assert_eq!(values(&to)[999], 999.0 * 999.0 + 1.0);
}

#[test]
fn a_panic_of_the_work_leaves_a_device_that_works() {
    let gpu = Gpu::new();
    let mut runs = 0;
    let panicking = std::panic::AssertUnwindSafe(|| {
        let recorded = Replay::record(&gpu.device, || {
            runs += 1;
            assert!(runs < 3, "no third time");
            Ok(())
        });
        recorded.map(drop)
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert_eq!(values(&ramp(&gpu.device, 3)), [0.0, 1.0, 2.0]);
}

#[test]
fn an_error_of_the_work_comes_back() {
    let gpu = Gpu::new();
    let mut runs = 0;
    let failing = || {
        runs += 1;
        match runs {
            // The runs before the recording go well.
            3 => candle_core::bail!("no third time"),
            _ => Ok(()),
        }
    };
    let error = Replay::record(&gpu.device, failing).err().expect("a refusal");
    assert!(error.to_string().starts_with("no third time"), "{error}");
    assert_eq!(values(&ramp(&gpu.device, 3)), [0.0, 1.0, 2.0]);
}
