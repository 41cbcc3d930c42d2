//! What happens when a descriptor is finalised: its attributes are checked against each other.

use std::collections::BTreeMap;

use super::super::convolution::{Movement, Pass, Problem};
use super::super::tensor::{Number, Tensor};
use super::super::{BAD_PARAM, DESCRIPTOR_TYPE, NOT_SUPPORTED, NULL_POINTER};
use super::attributes::{self, Kind};
use super::{
    Built, ENGINES, EXACT, Operation, Plan, TENSOR_CORE, UNAVAILABLE, Values, workspace_of,
};
use crate::api::{Outcome, refusal};

type All = BTreeMap<u32, Values>;

fn longs(all: &All, name: u32) -> Vec<i64> {
    let bytes = all.get(&name).map_or(&[][..], |values| &values.bytes);
    let longs = bytes.chunks_exact(8);
    longs.map(|bytes| i64::from_le_bytes(bytes.try_into().expect("eight bytes"))).collect()
}

fn word(all: &All, name: u32) -> u32 {
    let bytes = all.get(&name).and_then(|values| values.bytes.first_chunk::<4>());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn referred(all: &All, name: u32) -> Outcome<&Built> {
    all.get(&name)
        .and_then(|values| values.referred.first())
        .ok_or_else(|| refusal(BAD_PARAM, format!("attribute {name} refers to nothing")))
}

/// Two numbers that are not negative.
fn pair(all: &All, name: u32, least: i64) -> Outcome<[usize; 2]> {
    let values = longs(all, name);
    match values.as_slice() {
        [a, b] if *a >= least && *b >= least => Ok([*a as usize, *b as usize]),
        _ => {
            let line =
                format!("attribute {name} expected two numbers from {least}, got {values:?}");
            Err(refusal(BAD_PARAM, line))
        }
    }
}

fn tensor(all: &All) -> Outcome<Built> {
    let number = Number::of(word(all, attributes::TENSOR_TYPE))?;
    let dims = longs(all, attributes::TENSOR_DIMS);
    let strides = longs(all, attributes::TENSOR_STRIDES);
    if dims.len() != strides.len() {
        let line = format!("{} dimensions and {} strides", dims.len(), strides.len());
        return Err(refusal(BAD_PARAM, line));
    }
    let mut tensor = Tensor::new(number, &dims, &strides)?;
    let alignment = longs(all, attributes::TENSOR_ALIGNMENT)[0];
    if alignment <= 0 || !(alignment as usize).is_multiple_of(number.bytes()) {
        return Err(refusal(BAD_PARAM, format!("alignment {alignment} of numbers {number:?}")));
    }
    tensor.alignment = alignment as usize;
    if all.get(&attributes::TENSOR_VIRTUAL).is_some_and(|values| values.bytes[0] != 0) {
        return Err(refusal(NOT_SUPPORTED, "virtual tensors"));
    }
    Ok(Built::Tensor(tensor, longs(all, attributes::TENSOR_ID)[0]))
}

fn movement(all: &All) -> Outcome<Built> {
    let spatial = longs(all, attributes::SPATIAL)[0];
    if spatial != 2 {
        return Err(refusal(NOT_SUPPORTED, format!("convolutions of {spatial} dimensions")));
    }
    let compute = Number::of(word(all, attributes::COMPUTE_TYPE))?;
    if compute != Number::F32 {
        return Err(refusal(NOT_SUPPORTED, format!("sums of {compute:?}")));
    }
    let mode = word(all, attributes::MODE);
    if mode > 1 {
        return Err(refusal(BAD_PARAM, format!("convolution mode {mode}")));
    }
    Ok(Built::Movement(Movement {
        before: pair(all, attributes::BEFORE, 0)?,
        after: pair(all, attributes::AFTER, 0)?,
        strides: pair(all, attributes::STRIDES, 1)?,
        dilations: pair(all, attributes::DILATIONS, 1)?,
        flipped: mode == 0,
    }))
}

fn operation(kind: Kind, all: &All) -> Outcome<Built> {
    let [alpha, beta, convolution, w, x, y] = attributes::operation_names(kind);
    let tensor = |name: u32| match referred(all, name)? {
        Built::Tensor(tensor, id) => Ok((*tensor, *id)),
        _ => Err(refusal(DESCRIPTOR_TYPE, format!("attribute {name} expected a tensor"))),
    };
    let Built::Movement(movement) = referred(all, convolution)? else {
        let line = format!("attribute {convolution} expected a convolution");
        return Err(refusal(DESCRIPTOR_TYPE, line));
    };
    let ((x, x_id), (w, w_id), (y, y_id)) = (tensor(x)?, tensor(w)?, tensor(y)?);
    if x_id == w_id || x_id == y_id || w_id == y_id {
        let line = format!("tensors named {x_id}, {w_id} and {y_id}");
        return Err(refusal(BAD_PARAM, line));
    }
    let pass = match kind {
        Kind::BackwardData => Pass::BackwardData,
        Kind::BackwardFilter => Pass::BackwardFilter,
        _ => Pass::Forward,
    };
    let scales = [f32::from_bits(word(all, alpha)), f32::from_bits(word(all, beta))];
    let problem = Problem { pass, x, w, y, movement: *movement, scales };
    problem.check(None)?;
    Ok(Built::Operation(Operation { problem, ids: [x_id, w_id, y_id] }))
}

fn graph(all: &All) -> Outcome<Built> {
    let operations = &all[&attributes::GRAPH_OPERATIONS].referred;
    match operations.as_slice() {
        [Built::Operation(operation)] => {
            super::stream_of(longs(all, attributes::GRAPH_HANDLE)[0] as usize)?;
            Ok(Built::Graph(*operation))
        }
        [_] => Err(refusal(DESCRIPTOR_TYPE, "a graph expected an operation")),
        _ => Err(refusal(NOT_SUPPORTED, format!("graphs of {} operations", operations.len()))),
    }
}

fn graph_of(all: &All, name: u32) -> Outcome<Operation> {
    match referred(all, name)? {
        Built::Graph(operation) => Ok(*operation),
        _ => Err(refusal(DESCRIPTOR_TYPE, format!("attribute {name} expected a graph"))),
    }
}

fn heuristics(all: &All) -> Outcome<Built> {
    const FALLBACK: u32 = 2;
    let operation = graph_of(all, attributes::HEURISTIC_GRAPH)?;
    let single = operation.problem.x.number == Number::F32;
    let engines = match word(all, attributes::HEURISTIC_MODE) {
        FALLBACK => vec![EXACT],
        // For singles the best engines are those of tensor cores, and nothing else is listed.
        0 | 1 | 3 if single => vec![UNAVAILABLE, TENSOR_CORE],
        0 | 1 | 3 => vec![UNAVAILABLE, TENSOR_CORE, EXACT],
        mode => return Err(refusal(BAD_PARAM, format!("heuristic mode {mode}"))),
    };
    Ok(Built::Heuristics(operation, engines))
}

fn plan(all: &All) -> Outcome<Built> {
    let Built::Config(operation, engine) = *referred(all, attributes::PLAN_CONFIG)? else {
        return Err(refusal(DESCRIPTOR_TYPE, "a plan expected an engine's configuration"));
    };
    if engine == UNAVAILABLE {
        // An ordinary answer, which callers go on from: no line.
        return Err(refusal(NOT_SUPPORTED, ""));
    }
    let handle = longs(all, attributes::PLAN_HANDLE).first().map(|handle| *handle as usize);
    if let Some(handle) = handle {
        super::stream_of(handle)?;
    }
    let workspace = workspace_of(&operation, engine);
    Ok(Built::Plan(Plan { operation, engine, handle, workspace }))
}

fn pack(all: &All) -> Outcome<Built> {
    let ids = longs(all, attributes::PACK_IDS);
    let pointers = longs(all, attributes::PACK_POINTERS);
    if ids.len() != pointers.len() {
        let line = format!("{} names for {} pointers", ids.len(), pointers.len());
        return Err(refusal(BAD_PARAM, line));
    }
    if let Some(at) = pointers.iter().position(|pointer| *pointer == 0) {
        return Err(refusal(NULL_POINTER, format!("the pointer of tensor {}", ids[at])));
    }
    let count = ids.len();
    let pointers: BTreeMap<i64, usize> =
        ids.into_iter().zip(pointers.into_iter().map(|pointer| pointer as usize)).collect();
    if pointers.len() != count {
        return Err(refusal(BAD_PARAM, "a tensor is named twice"));
    }
    let workspace = longs(all, attributes::PACK_WORKSPACE)[0] as usize;
    Ok(Built::Pack { pointers, workspace })
}

/// Makes what a descriptor stands for.
///
/// # Errors
/// An attribute is missing; they do not go together; it is not supported.
pub(super) fn build(kind: Kind, all: &All) -> Outcome<Built> {
    for attribute in attributes::of(kind) {
        if attribute.required && !all.contains_key(&attribute.name) {
            let line = format!("a {kind:?} descriptor lacks attribute {}", attribute.name);
            return Err(refusal(BAD_PARAM, line));
        }
    }
    match kind {
        Kind::Tensor => tensor(all),
        Kind::Convolution => movement(all),
        Kind::Forward | Kind::BackwardData | Kind::BackwardFilter => operation(kind, all),
        Kind::Graph => graph(all),
        Kind::Heuristics => heuristics(all),
        Kind::Engine => {
            let index = longs(all, attributes::ENGINE_INDEX)[0];
            if !(0..ENGINES).contains(&index) {
                return Err(refusal(BAD_PARAM, format!("engine {index} of {ENGINES}")));
            }
            Ok(Built::Engine(graph_of(all, attributes::ENGINE_GRAPH)?, index))
        }
        Kind::EngineConfig => match referred(all, attributes::CONFIG_ENGINE)? {
            Built::Engine(operation, engine) => Ok(Built::Config(*operation, *engine)),
            _ => Err(refusal(DESCRIPTOR_TYPE, "a configuration expected an engine")),
        },
        Kind::Plan => plan(all),
        Kind::VariantPack => pack(all),
    }
}
