//! Whether several sets of parameters in one pass give what a detector for each of them gives.

use oodbench_abi::{DetectorBox, ErrorCode, ParamKind, extension};
use serde_json::{Map, Value};

use super::memory;
use super::run::{extended, fitted_with, keys, same};
use super::{Subject, Verdict, no_panic, said};
use crate::pack::{DetectorInfo, ParamInfo};
use crate::variants::set_variants;

type Params = Map<String, Value>;

/// Whether a detector with a readout scores its variants in one pass, each to the last bit as a
/// detector for this variant alone, whichever of them it was made for.
pub(super) fn variants(subject: &Subject<'_>) -> Verdict {
    let tried = tried(subject.info, &subject.info.example.params);
    if !subject.info.has_readout() {
        return unsupported(subject);
    }
    // What each gives alone; none where it is refused, as K = 50 is by an example with 2 images.
    let mut alone: Vec<(&Params, Option<Vec<f32>>)> = Vec::new();
    for params in &tried {
        match fitted_with(subject, params) {
            // What `new` refuses is no variant.
            Err(error) if error.code == ErrorCode::BAD_PARAMETER => continue,
            Err(error) => return Err(said(&of("fit", params), &error)),
            Ok(mut detector) => match score(subject, &mut detector, 1) {
                Err(error) if error.code == ErrorCode::PANICKED => {
                    return Err(said(&of("score", params), &error));
                }
                scores => alone.push((params, scores.ok())),
            },
        }
    }
    let accepted: Vec<_> = alone.iter().filter(|(_, scores)| scores.is_some()).collect();
    let (Some(&&(first, _)), Some(&&(last, _))) = (accepted.first(), accepted.last()) else {
        return Err("no value of its readouts goes with the example".to_owned());
    };
    let rows: Vec<Params> = accepted.iter().map(|(params, _)| (*params).clone()).collect();
    for made_for in [first, last] {
        let mut detector =
            fitted_with(subject, made_for).map_err(|error| said(&of("fit", made_for), &error))?;
        faults_are_named(&mut detector, &alone)?;
        compare(subject, &mut detector, &rows, &accepted)?;
        // And back to its own parameters.
        set(&mut detector, &[])?;
        let own = score(subject, &mut detector, 1).map_err(|error| said("score", &error))?;
        let expected = accepted.iter().find(|(params, _)| *params == made_for);
        let expected = expected.and_then(|(_, scores)| scores.as_ref());
        if let Some(expected) = expected.filter(|_| subject.info.deterministic) {
            same(&of("after variants, the score", made_for), expected, &own)?;
        }
    }
    state_serves_all(subject, first, last, &rows, &accepted)
}

fn of(what: &str, params: &Params) -> String {
    format!("{what} with `{}`", Value::Object(params.clone()))
}

/// A detector without a readout says that it knows no variants.
fn unsupported(subject: &Subject<'_>) -> Verdict {
    let example = &subject.info.example.params;
    let mut detector =
        fitted_with(subject, example).map_err(|error| said(&of("fit", example), &error))?;
    match extended(&mut detector, extension::VARIANTS, b"[{}]") {
        Err(error) if error.code == ErrorCode::UNSUPPORTED => Ok(()),
        Err(error) => Err(said("variants without a readout", &error)),
        Ok(_) => Err("variants without a readout expected UNSUPPORTED, got an answer".to_owned()),
    }
}

/// The example's parameters, then each value of each readout's sweep alone, then the first values
/// of all, the second values of all, and so on. Examples are tiny, so that 1 and 2 are tried as
/// well where a whole number is expected.
fn tried(info: &DetectorInfo, example: &Params) -> Vec<Params> {
    let values = |param: &ParamInfo| -> Vec<Value> {
        let small = (param.kind == ParamKind::INTEGER).then(|| [Value::from(1), Value::from(2)]);
        small.into_iter().flatten().chain(param.sweep.iter().cloned()).collect()
    };
    let readouts: Vec<(&str, Vec<Value>)> = info
        .params
        .iter()
        .filter(|param| param.readout)
        .map(|param| (param.name.as_str(), values(param)))
        .collect();
    let with = |changed: &[(&str, &Value)]| {
        let mut params = example.clone();
        params.extend(changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).clone())));
        params
    };
    let mut tried = vec![example.clone()];
    for (name, values) in &readouts {
        tried.extend(values.iter().map(|value| with(&[(*name, value)])));
    }
    let longest = readouts.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    for nth in 0..longest {
        let nth_of_all = readouts.iter().filter(|(_, values)| !values.is_empty());
        let nth_of_all = nth_of_all.map(|(name, values)| (*name, &values[nth % values.len()]));
        tried.push(with(&nth_of_all.collect::<Vec<_>>()));
    }
    let mut distinct: Vec<Params> = Vec::new();
    for params in tried {
        if !distinct.contains(&params) {
            distinct.push(params);
        }
    }
    distinct
}

fn score(
    subject: &Subject<'_>,
    detector: &mut DetectorBox,
    n_variants: usize,
) -> Result<Vec<f32>, oodbench_abi::RawError> {
    let prepared = subject.prepared.expect("checks with data have an example");
    let batch = &prepared.longer;
    memory::score_variants(detector, subject.info.needs, batch, &keys(batch), n_variants)
}

fn set(detector: &mut DetectorBox, variants: &[Params]) -> Verdict {
    let refused = set_variants(detector, variants).map_err(|error| said("variants", &error))?;
    match refused.into_iter().flatten().next() {
        Some(fault) => Err(format!("variants that were accepted alone: {}", fault.message)),
        None => Ok(()),
    }
}

/// The answer for all of them has a fault for each that alone gives no scores, and for no other.
fn faults_are_named(detector: &mut DetectorBox, alone: &[(&Params, Option<Vec<f32>>)]) -> Verdict {
    let all: Vec<Params> = alone.iter().map(|(params, _)| (*params).clone()).collect();
    let faults = set_variants(detector, &all).map_err(|error| said("variants", &error))?;
    for ((params, scores), fault) in alone.iter().zip(faults) {
        match (scores, fault) {
            (Some(_), Some(fault)) => {
                return Err(format!(
                    "{} is scored alone: {}",
                    of("variant", params),
                    fault.message
                ));
            }
            (None, None) => {
                return Err(format!(
                    "{} expected a fault, as alone it has no scores, got none",
                    of("variant", params)
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn compare(
    subject: &Subject<'_>,
    detector: &mut DetectorBox,
    rows: &[Params],
    expected: &[&(&Params, Option<Vec<f32>>)],
) -> Verdict {
    set(detector, rows)?;
    let together = score(subject, detector, rows.len())
        .map_err(|error| said("score of several variants", &error))?;
    if !subject.info.deterministic {
        return Ok(());
    }
    let n = together.len() / rows.len();
    for ((params, expected), got) in expected.iter().zip(together.chunks_exact(n)) {
        let expected = expected.as_deref().unwrap_or_default();
        same(&of("one pass for several variants", params), expected, got)?;
    }
    Ok(())
}

/// What was learned for one variant serves a detector that was made for another.
fn state_serves_all(
    subject: &Subject<'_>,
    first: &Params,
    last: &Params,
    rows: &[Params],
    expected: &[&(&Params, Option<Vec<f32>>)],
) -> Verdict {
    let mut detector =
        fitted_with(subject, first).map_err(|error| said(&of("fit", first), &error))?;
    let state = match extended(&mut detector, extension::SAVE_STATE, &[]) {
        Ok(state) => state,
        Err(error) => return no_panic::<()>("saving the state", Err(error)),
    };
    let mut restored = super::run::created_with(subject, last)
        .map_err(|error| said(&of("create", last), &error))?;
    extended(&mut restored, extension::LOAD_STATE, &state)
        .map_err(|error| said("loading the state of another variant", &error))?;
    compare(subject, &mut restored, rows, expected)
}
