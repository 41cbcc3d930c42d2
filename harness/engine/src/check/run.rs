//! Checks that run the detector: create, fit, score, state.

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RStr};
use oodbench_abi::{DetectorBox, ErrorCode, Needs, RawError, extension};
use serde_json::{Map, Value};

use super::example::Prepared;
use super::memory::{self, MemoryData, MemorySplit, MemoryTensor};
use super::{Subject, Verdict, no_panic, said};

/// An extension that no detector has.
const UNKNOWN_EXTENSION: &str = "oodbench.no-such-extension/1";

type Outcome<T> = Result<T, String>;

fn created(subject: &Subject<'_>) -> Outcome<DetectorBox> {
    let prepared = subject.example()?;
    (subject.create)(&prepared.params, prepared.host(subject.info.needs))
        .map_err(|error| said(&format!("create with `{}`", prepared.params), &error))
}

/// A detector with these parameters on the example's host.
pub(super) fn created_with(
    subject: &Subject<'_>,
    params: &Map<String, Value>,
) -> Result<DetectorBox, RawError> {
    let prepared = subject.prepared.expect("checks with data have an example");
    let params = Value::Object(params.clone()).to_string();
    (subject.create)(&params, prepared.host(subject.info.needs))
}

/// The same, fitted on the example.
pub(super) fn fitted_with(
    subject: &Subject<'_>,
    params: &Map<String, Value>,
) -> Result<DetectorBox, RawError> {
    let prepared = subject.prepared.expect("checks with data have an example");
    let mut detector = created_with(subject, params)?;
    memory::fit(&mut detector, subject.info.needs, &prepared.data)?;
    Ok(detector)
}

fn fitted(subject: &Subject<'_>) -> Outcome<DetectorBox> {
    let mut detector = created(subject)?;
    memory::fit(&mut detector, subject.info.needs, &subject.example()?.data)
        .map_err(|error| said("fit", &error))?;
    Ok(detector)
}

/// Image `i` of a batch has the key `i`.
pub(super) fn keys(batch: &MemorySplit) -> Vec<u64> {
    (0..batch.len() as u64).collect()
}

/// The finite scores of a batch, whose images keep the keys that they have in the longer batch.
fn scored(
    subject: &Subject<'_>,
    detector: &mut DetectorBox,
    batch: &MemorySplit,
    keys: &[u64],
) -> Outcome<Vec<f32>> {
    let scores = memory::score(detector, subject.info.needs, batch, keys)
        .map_err(|error| said("score", &error))?;
    match scores.iter().position(|score| !score.is_finite()) {
        Some(i) => Err(format!("score of image {i} expected a finite number, got {}", scores[i])),
        None => Ok(scores),
    }
}

/// Equal up to `tolerance` times the size of the greatest expected score.
fn close(what: &str, expected: &[f32], got: &[f32], tolerance: f32) -> Verdict {
    let greatest = expected.iter().fold(0.0f32, |max, score| max.max(score.abs()));
    // Where all scores are 0 nothing else gives a scale.
    let allowed = tolerance * if greatest > 0.0 { greatest } else { 1.0 };
    for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
        if (expected - got).abs() > allowed {
            return Err(format!(
                "{what}: score of image {i} expected {expected}, got {got}, at most {allowed:e} off allowed"
            ));
        }
    }
    Ok(())
}

/// Equal to the last bit.
pub(super) fn same(what: &str, expected: &[f32], got: &[f32]) -> Verdict {
    let bits = |scores: &[f32]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
    if bits(expected) == bits(got) {
        return Ok(());
    }
    close(what, expected, got, 0.0)?;
    Err(format!("{what}: scores expected equal, got 0 and -0"))
}

/// Whether the detector gives the scores of its worked example.
pub(super) fn worked_example(subject: &Subject<'_>) -> Verdict {
    let Prepared { batch, scores, tolerance, .. } = subject.example()?;
    let got = scored(subject, &mut fitted(subject)?, batch, &keys(batch))?;
    close("worked example", scores, &got, *tolerance)
}

/// Whether a detector that says so always gives the same scores.
pub(super) fn determinism(subject: &Subject<'_>) -> Verdict {
    let batch = &subject.example()?.longer;
    let mut detector = fitted(subject)?;
    let first = scored(subject, &mut detector, batch, &keys(batch))?;
    let again = scored(subject, &mut detector, batch, &keys(batch))?;
    let other = scored(subject, &mut fitted(subject)?, batch, &keys(batch))?;
    if !subject.info.deterministic {
        return Ok(());
    }
    same("the same batch twice", &first, &again)?;
    same("a second detector", &first, &other)
}

/// Whether scores depend on how images are put into batches.
pub(super) fn batch_split(subject: &Subject<'_>) -> Verdict {
    let n = subject.example()?.longer.len();
    let singles: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
    let halves = [(0..n / 2).collect(), (n / 2..n).collect()];
    rearranged(subject, "one image at a time", &singles)?;
    rearranged(subject, "two halves", &halves)
}

/// Whether scores depend on the order of images.
pub(super) fn order(subject: &Subject<'_>) -> Verdict {
    let n = subject.example()?.longer.len();
    rearranged(subject, "in reverse order", &[(0..n).rev().collect()])
}

/// Scores the longer batch as a whole, and again in these parts.
fn rearranged(subject: &Subject<'_>, what: &str, parts: &[Vec<usize>]) -> Verdict {
    let Prepared { longer, tolerance, .. } = subject.example()?;
    let mut detector = fitted(subject)?;
    let whole = scored(subject, &mut detector, longer, &keys(longer))?;
    let mut got = vec![0.0; whole.len()];
    for part in parts {
        let part_keys: Vec<u64> = part.iter().map(|&i| i as u64).collect();
        let scores = scored(subject, &mut detector, &longer.select(part), &part_keys)?;
        for (&i, score) in part.iter().zip(scores) {
            got[i] = score;
        }
    }
    if !subject.info.deterministic {
        return Ok(());
    }
    // Sums may run in another order in another batch, so equal bits would be too much to ask.
    close(what, &whole, &got, *tolerance)
}

/// Whether a batch without images is scored.
pub(super) fn empty_batch(subject: &Subject<'_>) -> Verdict {
    let empty = subject.example()?.batch.select(&[]);
    scored(subject, &mut fitted(subject)?, &empty, &[]).map(|_| ())
}

/// Whether tensors of another size than those of the fit are refused.
pub(super) fn wrong_shapes(subject: &Subject<'_>) -> Verdict {
    let needs = subject.info.needs;
    let batch = &subject.example()?.batch;
    let mut detector = fitted(subject)?;
    let mut refused = |what: &str, batch: &MemorySplit| match memory::score(
        &mut detector,
        needs,
        batch,
        &keys(batch),
    ) {
        Ok(_) => Err(format!("{what} expected an error, got scores")),
        Err(error) => no_panic::<()>(what, Err(error)),
    };
    if needs.contains(Needs::LOGITS) {
        let logits = without_last_column(&batch.logits);
        refused("logits with a column too few", &MemorySplit { logits, ..batch.clone() })?;
    }
    if needs.contains(Needs::FEATURES) {
        let features = without_last_column(&batch.features);
        refused("features with a column too few", &MemorySplit { features, ..batch.clone() })?;
    }
    if needs.contains(Needs::IMAGES) {
        let images = without_last_column(&batch.images);
        refused("images with a channel too few", &MemorySplit { images, ..batch.clone() })?;
    }
    Ok(())
}

/// The tensor without the last entry along its second axis.
fn without_last_column(tensor: &MemoryTensor) -> MemoryTensor {
    let mut shape = tensor.shape.clone();
    let inner: usize = shape[2..].iter().product();
    let row = shape[1] * inner;
    shape[1] -= 1;
    let data = tensor.data.chunks_exact(row).flat_map(|row| &row[..row.len() - inner]);
    MemoryTensor::new(data.copied().collect(), &shape)
}

/// Whether NaN and infinity, in what is scored or fitted on, end in anything but a panic.
pub(super) fn non_finite_input(subject: &Subject<'_>) -> Verdict {
    let needs = subject.info.needs;
    let prepared = subject.example()?;
    for (name, value) in [("NaN", f32::NAN), ("infinity", f32::INFINITY)] {
        for every in [false, true] {
            let batch = spoiled(&prepared.longer, value, every);
            let result = memory::score(&mut fitted(subject)?, needs, &batch, &keys(&batch));
            no_panic(&format!("score of {name}"), result)?;
            let data = &prepared.data;
            let data = MemoryData {
                train: spoiled(&data.train, value, every),
                val: spoiled(&data.val, value, every),
                val_ood: data.val_ood.as_ref().map(|split| spoiled(split, value, every)),
                ..MemoryData::clone(data)
            };
            let mut detector = created(subject)?;
            no_panic(&format!("fit on {name}"), memory::fit(&mut detector, needs, &data))?;
            let batch = &prepared.batch;
            let result = memory::score(&mut detector, needs, batch, &keys(batch));
            no_panic(&format!("score after a fit on {name}"), result)?;
        }
    }
    Ok(())
}

/// The split with this value in the first place of each tensor, or in every place.
fn spoiled(split: &MemorySplit, value: f32, every: bool) -> MemorySplit {
    let mut split = split.clone();
    for tensor in [&mut split.logits, &mut split.features, &mut split.images] {
        let n = if every { tensor.data.len() } else { tensor.data.len().min(1) };
        tensor.data[..n].fill(value);
    }
    split
}

/// Whether a state that was saved gives the same scores in a new detector.
pub(super) fn state_round_trip(subject: &Subject<'_>) -> Verdict {
    let batch = &subject.example()?.longer;
    let mut detector = fitted(subject)?;
    match extended(&mut detector, UNKNOWN_EXTENSION, &[]) {
        Err(error) if error.code == ErrorCode::UNSUPPORTED => {}
        Err(error) => return Err(said("an unknown extension", &error)),
        Ok(_) => return Err("an unknown extension expected UNSUPPORTED, got an answer".to_owned()),
    }
    let state = match extended(&mut detector, extension::SAVE_STATE, &[]) {
        Ok(state) => state,
        Err(error) if error.code == ErrorCode::UNSUPPORTED => return Ok(()),
        Err(error) => return Err(said("saving the state", &error)),
    };
    let expected = scored(subject, &mut detector, batch, &keys(batch))?;
    let mut restored = created(subject)?;
    extended(&mut restored, extension::LOAD_STATE, &state)
        .map_err(|error| said("loading the saved state", &error))?;
    let got = scored(subject, &mut restored, batch, &keys(batch))?;
    if subject.info.deterministic {
        same("after the state was loaded", &expected, &got)?;
    }
    // A file that was cut off must not take the process with it.
    for cut in [&state[..0], &state[..state.len() / 2]] {
        let mut detector = created(subject)?;
        no_panic("loading half a state", extended(&mut detector, extension::LOAD_STATE, cut))?;
    }
    Ok(())
}

pub(super) fn extended(
    detector: &mut DetectorBox,
    id: &str,
    input: &[u8],
) -> Result<Vec<u8>, RawError> {
    match detector.extension(RStr::from(id), RSlice::from_slice(input)) {
        RResult::ROk(bytes) => Ok(bytes.into()),
        RResult::RErr(error) => Err(error),
    }
}

/// Whether scoring without a fit ends in anything but a panic.
pub(super) fn score_before_fit(subject: &Subject<'_>) -> Verdict {
    let batch = &subject.example()?.batch;
    let result = memory::score(&mut created(subject)?, subject.info.needs, batch, &keys(batch));
    no_panic("score before fit", result)
}
