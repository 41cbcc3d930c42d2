//! `libcurand.so.10`: numbers that are uniform or normal. They are not those of NVIDIA's
//! generators; the same seed gives the same ones.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Mutex;

use crate::api::{Handles, Outcome, answer, lock, put, refusal};
use crate::driver::{entries, memory};
use crate::work;

const NOT_INITIALIZED: u32 = 101;
const TYPE_ERROR: u32 = 103;
const OUT_OF_RANGE: u32 = 104;
const LENGTH_NOT_MULTIPLE: u32 = 105;
const INTERNAL_ERROR: u32 = 999;

struct Generator {
    /// Seed, position, stream.
    state: Mutex<(u64, u64, usize)>,
}

static GENERATORS: Handles<Generator> = Handles::new("random number generator");

fn call(entry: &str, body: impl FnOnce() -> Outcome) -> u32 {
    answer(entry, INTERNAL_ERROR, body)
}

/// Bits from a seed and a position (splitmix64).
fn bits(seed: u64, position: u64) -> u64 {
    let step = position.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut mixed = seed.wrapping_mul(0xD6E8_FEB8_6659_FD93).wrapping_add(step);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

/// Uniform in (0, 1].
fn uniform(seed: u64, position: u64) -> f64 {
    ((bits(seed, position) >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// Standard normal, by Box and Muller's formula.
fn normal(seed: u64, position: u64) -> f64 {
    let radius = (-2.0 * uniform(seed, position & !1).ln()).sqrt();
    let angle = std::f64::consts::TAU * uniform(seed, position | 1);
    if position & 1 == 0 { radius * angle.cos() } else { radius * angle.sin() }
}

fn generate<T: Copy + Send + Sync + 'static>(
    generator: usize,
    to: *mut T,
    count: usize,
    number: impl Fn(u64, u64) -> T + Send + Sync + 'static,
) -> Outcome {
    let generator = GENERATORS.get(generator, NOT_INITIALIZED)?;
    let (seed, first, stream) = {
        let mut state = lock(&generator.state);
        let taken = *state;
        state.1 += (count as u64).next_multiple_of(2);
        taken
    };
    let start = to as usize;
    work::submit(stream, format!("{count} random numbers"), move || {
        memory().check("random numbers", start, count * size_of::<T>())?;
        for at in 0..count {
            // SAFETY: inside one allocation.
            unsafe { (start as *mut T).add(at).write(number(seed, first + at as u64)) };
        }
        Ok(())
    })
}

fn even(count: usize) -> Outcome {
    if count.is_multiple_of(2) {
        return Ok(());
    }
    Err(refusal(LENGTH_NOT_MULTIPLE, format!("normal numbers come in pairs, got {count}")))
}

fn spread(deviation: f64) -> Outcome {
    if deviation >= 0.0 {
        return Ok(());
    }
    Err(refusal(OUT_OF_RANGE, format!("standard deviation {deviation}")))
}

entries! { call;
    fn curandCreateGenerator(generator: *mut usize, kind: c_uint) {
        if !(100..=161).contains(&kind) {
            return Err(refusal(TYPE_ERROR, format!("generator of kind {kind}")));
        }
        put(generator, GENERATORS.insert(Generator { state: Mutex::new((0, 0, 0)) }), OUT_OF_RANGE)
    }
    fn curandDestroyGenerator(generator: usize) {
        GENERATORS.remove(generator, NOT_INITIALIZED).map(|_| ())
    }
    fn curandSetStream(generator: usize, stream: usize) {
        work::stream(stream)?;
        lock(&GENERATORS.get(generator, NOT_INITIALIZED)?.state).2 = stream;
        Ok(())
    }
    fn curandSetPseudoRandomGeneratorSeed(generator: usize, seed: c_ulonglong) {
        let generator = GENERATORS.get(generator, NOT_INITIALIZED)?;
        let mut state = lock(&generator.state);
        (state.0, state.1) = (seed, 0);
        Ok(())
    }
    fn curandSetGeneratorOffset(generator: usize, offset: c_ulonglong) {
        lock(&GENERATORS.get(generator, NOT_INITIALIZED)?.state).1 = offset;
        Ok(())
    }
    fn curandGenerate(generator: usize, to: *mut u32, count: usize) {
        generate(generator, to, count, |seed, at| bits(seed, at) as u32)
    }
    fn curandGenerateUniform(generator: usize, to: *mut f32, count: usize) {
        generate(generator, to, count, |seed, at| {
            ((bits(seed, at) >> 40) + 1) as f32 / (1_u32 << 24) as f32
        })
    }
    fn curandGenerateUniformDouble(generator: usize, to: *mut f64, count: usize) {
        generate(generator, to, count, uniform)
    }
    fn curandGenerateNormal(generator: usize, to: *mut f32, count: usize, mean: f32, sd: f32) {
        even(count)?;
        spread(f64::from(sd))?;
        generate(generator, to, count, move |seed, at| mean + sd * normal(seed, at) as f32)
    }
    fn curandGenerateNormalDouble(generator: usize, to: *mut f64, count: usize, mean: f64, sd: f64) {
        even(count)?;
        spread(sd)?;
        generate(generator, to, count, move |seed, at| mean + sd * normal(seed, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_their_mean_and_deviation() {
        let all: Vec<f64> = (0..100_000).map(|at| normal(7, at)).collect();
        let mean = all.iter().sum::<f64>() / 1e5;
        let variance = all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
