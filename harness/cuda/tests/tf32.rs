//! The switch for TF32, in a process of its own since it holds for the process.
//!
//! On the stand-in driver it needs `STANDIN_TF32=1`: unless told, that one does not round.

use candle_core::{Device, Result, Tensor};
use oodbench_cuda::conv::Method;
use oodbench_cuda::ops::conv2d_by;
use oodbench_cuda::{set_tf32, tf32};

fn device() -> Device {
    let name = std::env::var("OODBENCH_DEVICE").unwrap_or_else(|_| "cuda:0".to_owned());
    let ordinal = name.strip_prefix("cuda:").unwrap_or(&name).parse().expect("a device `cuda:N`");
    oodbench_cuda::open(ordinal).unwrap_or_else(|error| panic!("open `{name}`: {error}"))
}

/// The largest difference, in standard deviations of `want`.
fn distance(got: &Tensor, want: &Tensor) -> Result<f32> {
    let mean = want.mean_all()?;
    let std = want.broadcast_sub(&mean)?.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    Ok((got - want)?.abs()?.max_all()?.to_scalar::<f32>()? / std)
}

#[test]
fn tf32_is_off_at_first_close_when_on_and_gone_when_off_again() -> Result<()> {
    assert!(!tf32());
    let device = device();
    let numbers = |shape: (usize, usize, usize, usize)| -> Result<Tensor> {
        let count = (shape.0 * shape.1 * shape.2 * shape.3) as f32;
        let phase = Tensor::arange(0_f32, count, &Device::Cpu)?;
        // Full mantissas, so that rounding to TF32 shows.
        (phase.sqr()? * 0.37)?.sin()?.reshape(shape)?.to_device(&device)
    };
    let xs = numbers((2, 12, 12, 64))?;
    let mut most = 0_f32;
    for kernel in [1, 3] {
        let weight = numbers((32, kernel, kernel, 64))?;
        for method in [Method::Best, Method::Im2col] {
            let run = || conv2d_by(method, &xs, &weight, 1, kernel / 2);
            let exact = run()?;
            set_tf32(true);
            let rounded = run()?;
            set_tf32(false);
            let again = run()?;
            assert_eq!(distance(&again, &exact)?, 0.0, "{method:?}, kernel {kernel}");
            // 10 bits of mantissa in both factors; errors average over at least 64 terms.
            let distance = distance(&rounded, &exact)?;
            assert!(distance < 3e-3, "{method:?}, kernel {kernel}: {distance}");
            most = most.max(distance);
        }
    }
    // An engine may be free to round and not do it; that none of them does means that nobody listens.
    assert!(most > 1e-6, "expected TF32 to be used by one product at least, got {most}");
    Ok(())
}
