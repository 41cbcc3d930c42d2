//! All operations in a recorded graph: nothing of them depends on what the host does while they run.

use candle_core::{DType, Result, Tensor, Var};
use oodbench_cuda::graph::Replay;
use oodbench_cuda::ops;

use crate::check::{number_pair, values};
use crate::device;

/// Something of every operation, from an image to an image.
fn all(xs: &Tensor, parameter: &Tensor, weight: &Tensor, dtype: DType) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let hs = ops::to_channels_last(xs, dtype, 8)?;
    let hs = ops::cat_channels(&ops::add_bias(&hs, &parameter.narrow(1, 0, 8)?)?, &hs)?; // 16 channels
    let hs = ops::conv2d(&hs, &ops::pack_weight(weight, dtype, 24, 16)?, 1, 1)?; // 24 channels
    let hs = ops::group_norm(&hs, parameter, parameter, Some(parameter), 6, 1e-6, true)?;
    let hs = ops::avg_pool_2x(&ops::upsample_2x(&ops::dropout(&hs, 0.3, 7)?)?)?;
    let qkv = hs.reshape((batch, height * width, 24))?;
    let hs = ops::attention(&qkv, 2, 0.5)?.reshape((batch, height, width, 8))?;
    let hs = ops::pad_end(&ops::add(&hs, &hs, None)?)?;
    ops::to_channels_first(&hs, channels)
}

#[test]
fn a_graph_does_the_same_on_other_numbers() -> Result<()> {
    let device = device();
    for dtype in [DType::F32, DType::BF16] {
        let take = |seed, dims: &[usize]| number_pair(seed, dims, DType::F32, &device).0;
        let xs = Var::from_tensor(&take(1, &[2, 3, 8, 8]))?;
        let parameter = Var::from_tensor(&take(2, &[2, 24]))?;
        let weight = Var::from_tensor(&take(3, &[24, 16, 3, 3]))?;
        let gradients = || -> Result<[Tensor; 4]> {
            let ys = all(&xs, &parameter, &weight, dtype)?;
            let grads = ys.sqr()?.sum_all()?.backward()?;
            let of = |var: &Var| {
                grads.get(var).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"))
            };
            Ok([ys.detach(), of(&xs)?, of(&parameter)?, of(&weight)?])
        };
        let mut kept = Vec::new();
        for tensor in gradients()? {
            kept.push(Var::from_tensor(&tensor.zeros_like()?)?);
        }
        let mut replay = Replay::record(&device, || {
            for (kept, tensor) in kept.iter().zip(gradients()?) {
                kept.set(&tensor)?;
            }
            Ok(())
        })?;
        let first: Vec<_> = kept.iter().map(|kept| values(kept)).collect();
        xs.set(&take(4, &[2, 3, 8, 8]))?;
        parameter.set(&take(5, &[2, 24]))?;
        replay.launch()?;
        for ((kept, want), before) in kept.iter().zip(gradients()?).zip(first) {
            assert_eq!(values(kept), values(&want), "{dtype:?}");
            assert_ne!(values(kept), before, "{dtype:?}");
        }
    }
    Ok(())
}

#[test]
fn a_tensor_from_outside_that_is_dropped_is_an_error_and_does_no_harm() -> Result<()> {
    let device = device();
    let one = || Tensor::ones(8, DType::F32, &device);
    let kept = Var::from_tensor(&one()?)?;
    let (mut outside, mut runs) = (Some(one()?), 0);
    let recorded = Replay::record(&device, || {
        kept.set(&(kept.as_tensor() * 2.0)?)?;
        runs += 1;
        if runs == 3 {
            drop(outside.take());
        }
        Ok(())
    });
    assert!(recorded.is_err());
    // Twice one, twice: the third run computes nothing.
    let doubled = (kept.as_tensor() + one()?)?;
    assert_eq!(values(&doubled), [5.0; 8]);
    Ok(())
}

#[test]
fn a_device_is_opened_while_another_thread_records() -> Result<()> {
    let device = device();
    let kept = Var::from_tensor(&Tensor::ones(8, DType::F32, &device)?)?;
    let (mut opening, mut runs) = (None, 0);
    let mut replay = Replay::record(&device, || {
        runs += 1;
        if runs == 3 {
            opening = Some(std::thread::spawn(|| crate::open().is_cuda()));
            // Long enough for it to come where it has to wait.
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        kept.set(&(kept.as_tensor() * 2.0)?)
    })?;
    assert!(opening.is_some_and(|opening| opening.join().unwrap()));
    replay.launch()?;
    assert_eq!(values(&kept), [8.0; 8]);
    Ok(())
}
