//! How long a plan takes, by the device's own clock.

use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::{Error, Result};

/// Executions that are timed together.
const REPETITIONS: usize = 5;

/// Who takes this many times as long as the best so far is not worth more executions.
const HOPELESS: f32 = 2.0;

/// Milliseconds of one execution, the mean of some behind one that loads what is to be loaded. `None`
/// if an execution is refused, or the second takes far more than `best`. Waits for the stream.
///
/// # Errors
/// The device does not answer; the error of an execution that ran may stand behind it.
pub(super) fn time<E>(
    stream: &CudaStream,
    best: f32,
    mut execute: impl FnMut() -> std::result::Result<(), E>,
) -> Result<Option<f32>> {
    if execute().is_err() {
        return Ok(None);
    }
    match time_some(stream, 1, &mut execute)? {
        Some(ms) if ms <= HOPELESS * best => time_some(stream, REPETITIONS, &mut execute),
        _ => Ok(None),
    }
}

fn time_some<E>(
    stream: &CudaStream,
    count: usize,
    execute: &mut impl FnMut() -> std::result::Result<(), E>,
) -> Result<Option<f32>> {
    let event =
        || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(Error::wrap);
    let (start, end) = (event()?, event()?);
    start.record(stream).map_err(Error::wrap)?;
    for _ in 0..count {
        if execute().is_err() {
            return Ok(None);
        }
    }
    end.record(stream).map_err(Error::wrap)?;
    let elapsed = start.elapsed_ms(&end).map_err(Error::wrap)?;
    Ok(Some(elapsed / count as f32))
}
