//! `--device`: what it comes to, said in one line where there was a choice.

use oodbench_engine::EngineError;
use oodbench_nn::device::{AUTO, Chosen, choose, has_cuda};
use oodbench_nn::precision::Precision;

use crate::exit::Failure;
use crate::observer::Talk;

/// The device that a command runs on. Nothing typed is `auto`, about which a build without CUDA has
/// nothing to say.
///
/// # Errors
/// A device that was named and cannot be had.
pub(crate) fn chosen(typed: Option<&str>, talk: &Talk) -> Result<Chosen, Failure> {
    let chosen = choose(typed.unwrap_or(AUTO)).map_err(EngineError::from)?;
    let had_a_choice = match typed {
        Some(typed) => typed == AUTO || chosen.gpu.is_some(),
        None => has_cuda(),
    };
    if had_a_choice {
        talk.note(&chosen.line());
    }
    Ok(chosen)
}

/// Refuses numbers that the device does not have.
///
/// # Errors
/// Anything but `f32` on the CPU.
pub(crate) fn check(precision: Precision, device: &candle_core::Device) -> Result<(), Failure> {
    oodbench_nn::device::set_precision(precision, device).map_err(|error| {
        let hint = "compute on a GPU with `--device cuda`, or leave `--precision` out";
        Failure::usage(error.to_string(), Some(hint.to_owned()))
    })
}
