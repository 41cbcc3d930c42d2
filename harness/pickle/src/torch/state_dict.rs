//! The weights within a checkpoint, which everybody wraps in another way.

use std::{collections::HashMap, sync::Arc};

use thiserror::Error;

use super::TensorRef;
use crate::value::Value;

/// Where training scripts put the weights, in the order in which they are looked for: the weights as
/// trained come before their moving average.
const WRAPPERS: [&str; 15] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "state",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
    "ema",
];

/// What data parallel training puts before each name.
const PARALLEL: &str = "module.";

const WHOLE_MODULE: &str = "\n\nhint: save `model.state_dict()` rather than the model itself";

/// How deep the weights may lie.
const MAX_WRAPPED: usize = 4;

/// How many names a message lists.
const LISTED: usize = 12;

/// A checkpoint in which the weights cannot be told.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateDictError {
    /// There is nothing that maps names to tensors.
    #[error("expected a state dict, got {found}{}", if *is_object { WHOLE_MODULE } else { "" })]
    Missing {
        /// What there is.
        found: String,
        /// Whether it is an object of some class, most likely a whole module.
        is_object: bool,
    },
    /// There are several, none of them under a usual name.
    #[error("expected one state dict, got several: {}", names.join(", "))]
    Several {
        /// Where they are.
        names: Vec<String>,
    },
}

/// The weights in a checkpoint: names and tensors in the order in which they were saved.
///
/// They may be the whole of it, lie under a usual name (`state_dict`, `model`, `net`, …) or under the
/// only name that has any, or be the first element of a list. The prefix `module.` is taken off where all
/// names have it. Entries that are not tensors are left out.
///
/// # Errors
///
/// [`StateDictError`] says what was found where there is no state dict, or more than one.
pub fn flatten_state_dict(value: &Value) -> Result<Vec<(String, Arc<TensorRef>)>, StateDictError> {
    let found = find(value, MAX_WRAPPED)?;
    let Some(entries) = found else {
        let is_object = value.as_object().is_some() && value.entries().is_none();
        return Err(StateDictError::Missing { found: describe(value), is_object });
    };
    let mut names = HashMap::new();
    let mut weights: Vec<(String, Arc<TensorRef>)> = Vec::new();
    for (name, tensor) in tensors(entries) {
        // A name that was set twice keeps its place and takes the later tensor, as in Python.
        match names.get(name) {
            Some(&at) => {
                let (_, earlier): &mut (String, _) = &mut weights[at];
                *earlier = Arc::clone(tensor);
            }
            None => {
                names.insert(name, weights.len());
                weights.push((name.to_owned(), Arc::clone(tensor)));
            }
        }
    }
    while !weights.is_empty() && weights.iter().all(|(name, _)| name.starts_with(PARALLEL)) {
        weights.iter_mut().for_each(|(name, _)| *name = name.split_off(PARALLEL.len()));
    }
    Ok(weights)
}

type Entries = [(Value, Value)];

fn find(value: &Value, depth: usize) -> Result<Option<&Entries>, StateDictError> {
    let Some(depth) = depth.checked_sub(1) else { return Ok(None) };
    if let Some([first, ..]) = value.as_list().or_else(|| value.as_tuple()) {
        return find(first, depth);
    }
    let Some(entries) = named_entries(value) else { return Ok(None) };
    for name in WRAPPERS {
        if let Some(inner) = value.get(name)
            && let Some(found) = find(inner, depth)?
        {
            return Ok(Some(found));
        }
    }
    let mut nested = Vec::new();
    for (name, inner) in entries {
        if named_entries(inner).is_some()
            && let Some(found) = find(inner, depth)?
        {
            nested.push((name.as_str().unwrap_or_default(), found));
        }
    }
    match &nested[..] {
        // A tensor beside a whole dict of them is a number that was kept, not a weight.
        [(_, found)] => Ok(Some(found)),
        [] => Ok((tensors(entries).next().is_some()).then_some(entries)),
        several => Err(StateDictError::Several {
            names: several.iter().take(LISTED).map(|(name, _)| quote(name)).collect(),
        }),
    }
}

/// The entries of a dict whose keys are all text; those of an optimiser are not.
fn named_entries(value: &Value) -> Option<&Entries> {
    value.entries().filter(|entries| entries.iter().all(|(key, _)| key.as_str().is_some()))
}

fn tensors(entries: &Entries) -> impl Iterator<Item = (&str, &Arc<TensorRef>)> {
    entries.iter().filter_map(|(key, value)| Some((key.as_str()?, value.as_tensor()?)))
}

/// A name for a message: on one line, and of which only the beginning where it is very long.
fn quote(name: &str) -> String {
    let start: String = name.chars().take(64).collect();
    format!("`{}`", start.escape_debug())
}

/// A line on a checkpoint without weights, for the message.
fn describe(value: &Value) -> String {
    let kind = value.kind();
    let parts: Vec<String> = match (value.entries(), value.items()) {
        (Some(entries), _) => {
            let part = |(key, value): &(Value, Value)| match key.as_str() {
                Some(name) => format!("{} ({})", quote(name), value.kind()),
                None => format!("{} ({})", key.kind(), value.kind()),
            };
            entries.iter().take(LISTED).map(part).collect()
        }
        (None, Some(items)) => items.iter().take(LISTED).map(Value::kind).collect(),
        (None, None) => Vec::new(),
    };
    let n_parts = value.entries().map_or(value.items().map_or(0, <[Value]>::len), <[_]>::len);
    match (parts.is_empty(), n_parts > parts.len()) {
        (true, _) => kind,
        (false, false) => format!("{kind}: {}", parts.join(", ")),
        (false, true) => format!("{kind}: {}, …", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Dtype;

    fn tensor(storage: &str) -> Value {
        let (shape, strides) = (vec![2], vec![1]);
        let storage = storage.into();
        Value::Tensor(Arc::new(TensorRef { dtype: Dtype::F32, storage, offset: 0, shape, strides }))
    }

    fn dict<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Dict(entries.map(|(key, value)| (Value::Str(key.into()), value)).into())
    }

    fn weights() -> Value {
        dict([("conv.weight", tensor("0")), ("fc.bias", tensor("1"))])
    }

    #[track_caller]
    fn check(value: &Value, expected: &[(&str, &str)]) {
        let found = flatten_state_dict(value).unwrap();
        let found: Vec<_> = found.iter().map(|(name, at)| (&**name, &*at.storage)).collect();
        assert_eq!(found, expected);
    }

    const WEIGHTS: [(&str, &str); 2] = [("conv.weight", "0"), ("fc.bias", "1")];

    #[test]
    fn weights_are_found_wherever_scripts_put_them() {
        check(&weights(), &WEIGHTS);
        for wrapper in WRAPPERS {
            check(&dict([("epoch", Value::Int(3)), (wrapper, weights())]), &WEIGHTS);
        }
        check(&dict([("something else", weights())]), &WEIGHTS);
        check(&dict([("model", dict([("state_dict", weights())]))]), &WEIGHTS);
        check(&Value::List([weights(), Value::Int(7)].into()), &WEIGHTS);
        check(&Value::Tuple([weights(), weights()].into()), &WEIGHTS);
    }

    #[test]
    fn a_best_score_kept_as_a_tensor_is_no_weight() {
        check(&dict([("best_prec1", tensor("9")), ("state_dict", weights())]), &WEIGHTS);
        check(&dict([("best_prec1", tensor("9")), ("resnet", weights())]), &WEIGHTS);
    }

    #[test]
    fn an_optimiser_is_no_state_dict() {
        let state = Value::Dict([(Value::Int(0), dict([("exp_avg", tensor("5"))]))].into());
        let optimiser = dict([("state", state), ("param_groups", Value::List([].into()))]);
        check(&dict([("optimizer", optimiser), ("resnet", weights())]), &WEIGHTS);
    }

    #[test]
    fn a_moving_average_comes_after_the_weights_themselves() {
        let average = dict([("conv.weight", tensor("7"))]);
        check(&dict([("ema", average.clone()), ("model", weights())]), &WEIGHTS);
        check(&dict([("ema", average)]), &[("conv.weight", "7")]);
    }

    #[test]
    fn the_parallel_prefix_goes_where_all_have_it() {
        let all = dict([("module.a", tensor("0")), ("module.b.module.c", tensor("1"))]);
        check(&all, &[("a", "0"), ("b.module.c", "1")]);
        let twice = dict([("module.module.a", tensor("0")), ("module.module.b", tensor("1"))]);
        check(&twice, &[("a", "0"), ("b", "1")]);
        let some = dict([("module.a", tensor("0")), ("b", tensor("1"))]);
        check(&some, &[("module.a", "0"), ("b", "1")]);
    }

    #[test]
    fn what_is_no_tensor_is_left_out_and_the_last_of_equal_names_counts() {
        let state = dict([
            ("a", tensor("0")),
            ("extra", Value::None),
            ("b", tensor("1")),
            ("a", tensor("2")),
        ]);
        check(&state, &[("a", "2"), ("b", "1")]);
    }

    #[test]
    fn errors_say_what_is_there() {
        let message = |value: &Value| flatten_state_dict(value).unwrap_err().to_string();
        assert_eq!(
            message(&dict([("epoch", Value::Int(3)), ("log", Value::List([].into()))])),
            "expected a state dict, got a dict of 2: `epoch` (an integer), `log` (a list of 0)"
        );
        assert_eq!(message(&Value::None), "expected a state dict, got None");
        assert_eq!(
            message(&Value::List([Value::Int(1)].into())),
            "expected a state dict, got a list of 1: an integer"
        );
        assert_eq!(
            message(&dict([("generator", weights()), ("discriminator", weights())])),
            "expected one state dict, got several: `generator`, `discriminator`"
        );
    }
}
