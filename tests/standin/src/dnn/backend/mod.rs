//! The graph interface: descriptors with attributes, which are checked when they are finalised.
//!
//! Three engines are offered. The first has a note that it uses tensor cores, and rounds singles to
//! TF32; the second is exact; the third is listed and then refused when a plan is made, as the
//! heuristics of the real library do.

mod attributes;
mod finalize;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use super::convolution::{Addresses, Movement, Problem};
use super::tensor::Tensor;
use super::{
    ATTRIBUTE_TYPE, BAD_PARAM, DESCRIPTOR_TYPE, NOT_FINALIZED, NULL_POINTER, SIZE_INSUFFICIENT,
    call, stream_of, use_workspace,
};
use crate::api::{Handles, Outcome, lock, peek_all, put, refusal};
use crate::driver::{entries, memory};
use crate::work;
use attributes::{Count, Kind, Type};

/// The engine that rounds to TF32, the exact one, and the one that cannot be had.
const TENSOR_CORE: i64 = 0;
const EXACT: i64 = 1;
const UNAVAILABLE: i64 = 2;
const ENGINES: i64 = 3;

/// The values of one attribute, as bytes, or the descriptors that it refers to.
#[derive(Clone, Default)]
struct Values {
    bytes: Vec<u8>,
    count: usize,
    referred: Vec<Built>,
}

/// A convolution and the names of its three tensors.
#[derive(Debug, Clone, Copy)]
struct Operation {
    problem: Problem,
    /// Of x, w and y.
    ids: [i64; 3],
}

/// A plan: what, how, on which handle, with how much workspace.
#[derive(Debug, Clone, Copy)]
struct Plan {
    operation: Operation,
    engine: i64,
    handle: Option<usize>,
    workspace: usize,
}

/// What a finalised descriptor stands for.
#[derive(Debug, Clone)]
enum Built {
    Tensor(Tensor, i64),
    Movement(Movement),
    Operation(Operation),
    Graph(Operation),
    Heuristics(Operation, Vec<i64>),
    Engine(Operation, i64),
    Config(Operation, i64),
    Plan(Plan),
    Pack { pointers: BTreeMap<i64, usize>, workspace: usize },
}

struct Inner {
    values: BTreeMap<u32, Values>,
    built: Option<Built>,
}

struct Descriptor {
    kind: Kind,
    inner: Mutex<Inner>,
}

static DESCRIPTORS: Handles<Descriptor> = Handles::new("backend descriptor");

impl Descriptor {
    /// What it stands for.
    ///
    /// # Errors
    /// It is not finalised.
    fn built(&self) -> Outcome<Built> {
        lock(&self.inner).built.clone().ok_or_else(|| {
            refusal(
                NOT_FINALIZED,
                format!("a {:?} descriptor is used before it is finalised", self.kind),
            )
        })
    }
}

/// Bytes of workspace that an engine needs: never none, so that a caller's wiring shows.
fn workspace_of(operation: &Operation, engine: i64) -> usize {
    let output = operation.problem.y.span();
    match engine {
        TENSOR_CORE => output.next_multiple_of(256) + 1024,
        _ => output.div_ceil(2).next_multiple_of(256) + 256,
    }
}

/// `CUDNN_NUMERICAL_NOTE_*` of an engine.
fn notes(engine: i64) -> Vec<u32> {
    if engine == TENSOR_CORE { vec![0] } else { Vec::new() }
}

fn set(which: usize, name: u32, value: u32, count: i64, from: *const c_void) -> Outcome {
    let descriptor = DESCRIPTORS.get(which, BAD_PARAM)?;
    let attribute = attributes::find(descriptor.kind, name)?;
    if !attribute.settable {
        return Err(refusal(BAD_PARAM, format!("attribute {name} can only be asked for")));
    }
    if attribute.value as u32 != value {
        let line = format!("attribute {name} expected {:?}, got type {value}", attribute.value);
        return Err(refusal(ATTRIBUTE_TYPE, line));
    }
    let count = usize::try_from(count).ok().filter(|count| *count > 0);
    let count =
        count.ok_or_else(|| refusal(BAD_PARAM, format!("attribute {name} of no values")))?;
    if attribute.count == Count::One && count != 1 {
        return Err(refusal(
            BAD_PARAM,
            format!("attribute {name} expected one value, got {count}"),
        ));
    }
    let mut inner = lock(&descriptor.inner);
    if inner.built.is_some() {
        return Err(refusal(BAD_PARAM, "an attribute is set after the descriptor is finalised"));
    }
    let bytes = peek_all(from.cast::<u8>(), count * attribute.value.bytes(), NULL_POINTER)?;
    let mut referred = Vec::new();
    if attribute.value == Type::Descriptor {
        for handle in bytes.chunks_exact(8) {
            let handle = u64::from_le_bytes(handle.try_into().expect("eight bytes"));
            referred.push(DESCRIPTORS.get(handle as usize, BAD_PARAM)?.built()?);
        }
    }
    inner.values.insert(name, Values { bytes, count, referred });
    Ok(())
}

fn put_all<T: Copy>(values: &[T], room: i64, count: *mut i64, to: *mut c_void) -> Outcome {
    if !count.is_null() {
        put(count, values.len() as i64, NULL_POINTER)?;
    }
    let room = usize::try_from(room).unwrap_or(0);
    for (at, value) in values.iter().take(room).enumerate() {
        put(to.cast::<T>().wrapping_add(at), *value, NULL_POINTER)?;
    }
    Ok(())
}

/// Fills descriptors that the caller made.
fn fill(made: Vec<Built>, kind: Kind, room: i64, count: *mut i64, to: *mut c_void) -> Outcome {
    let room = usize::try_from(room).unwrap_or(0);
    // Asked with room, the library says how many it wrote; asked without, how many there are.
    let written = if room == 0 { made.len() } else { made.len().min(room) };
    if !count.is_null() {
        put(count, written as i64, NULL_POINTER)?;
    }
    let handles = peek_all(to.cast::<usize>(), room.min(made.len()), NULL_POINTER)?;
    for (handle, built) in handles.into_iter().zip(made) {
        let descriptor = DESCRIPTORS.get(handle, BAD_PARAM)?;
        if descriptor.kind != kind {
            let line = format!("a descriptor expected {kind:?}, got {:?}", descriptor.kind);
            return Err(refusal(DESCRIPTOR_TYPE, line));
        }
        lock(&descriptor.inner).built = Some(built);
    }
    Ok(())
}

fn get(
    which: usize,
    name: u32,
    value: u32,
    room: i64,
    count: *mut i64,
    to: *mut c_void,
) -> Outcome {
    let descriptor = DESCRIPTORS.get(which, BAD_PARAM)?;
    let attribute = attributes::find(descriptor.kind, name)?;
    if attribute.value as u32 != value {
        let line = format!("attribute {name} expected {:?}, got type {value}", attribute.value);
        return Err(refusal(ATTRIBUTE_TYPE, line));
    }
    match (descriptor.built()?, name) {
        (Built::Heuristics(operation, engines), attributes::HEURISTIC_RESULTS) => {
            let made = engines.into_iter().map(|engine| Built::Config(operation, engine)).collect();
            fill(made, Kind::EngineConfig, room, count, to)
        }
        (Built::Config(operation, engine), attributes::CONFIG_ENGINE) => {
            fill(vec![Built::Engine(operation, engine)], Kind::Engine, room, count, to)
        }
        (Built::Config(operation, engine), attributes::CONFIG_WORKSPACE) => {
            put_all(&[workspace_of(&operation, engine) as i64], room, count, to)
        }
        (Built::Engine(_, engine), attributes::ENGINE_INDEX) => put_all(&[engine], room, count, to),
        (Built::Engine(_, engine), attributes::ENGINE_NUMERICAL) => {
            put_all(&notes(engine), room, count, to)
        }
        (Built::Engine(..), attributes::ENGINE_BEHAVIOR) => put_all(&[0_u32; 0], room, count, to),
        (Built::Plan(plan), attributes::PLAN_WORKSPACE) => {
            put_all(&[plan.workspace as i64], room, count, to)
        }
        (Built::Graph(_), attributes::GRAPH_ENGINES) => put_all(&[ENGINES], room, count, to),
        _ => {
            let inner = lock(&descriptor.inner);
            let values = inner.values.get(&name);
            let values = values.ok_or_else(|| refusal(BAD_PARAM, format!("attribute {name}")))?;
            if attribute.value == Type::Descriptor {
                return Err(refusal(super::NOT_SUPPORTED, format!("reading attribute {name}")));
            }
            if !count.is_null() {
                put(count, values.count as i64, NULL_POINTER)?;
            }
            let room = usize::try_from(room).unwrap_or(0) * attribute.value.bytes();
            for (at, byte) in values.bytes.iter().take(room).enumerate() {
                put(to.cast::<u8>().wrapping_add(at), *byte, NULL_POINTER)?;
            }
            Ok(())
        }
    }
}

fn execute(handle: usize, plan: usize, pack: usize) -> Outcome {
    let stream = stream_of(handle)?;
    let wrong = |what: &str| refusal(DESCRIPTOR_TYPE, format!("expected {what}"));
    let Built::Plan(plan) = DESCRIPTORS.get(plan, BAD_PARAM)?.built()? else {
        return Err(wrong("an execution plan"));
    };
    let Built::Pack { pointers, workspace } = DESCRIPTORS.get(pack, BAD_PARAM)?.built()? else {
        return Err(wrong("a variant pack"));
    };
    if plan.handle.is_some_and(|own| own != handle) {
        return Err(refusal(BAD_PARAM, "the plan was made with another handle"));
    }
    let pointer = |at: usize| {
        let id = plan.operation.ids[at];
        let found = pointers.get(&id).copied();
        found.ok_or_else(|| refusal(BAD_PARAM, format!("the variant pack has no tensor {id}")))
    };
    let at = Addresses { x: pointer(0)?, w: pointer(1)?, y: pointer(2)? };
    if memory().find(workspace, plan.workspace).is_none() {
        let known = memory().explain(workspace);
        let line = format!("workspace of {} bytes: {known}", plan.workspace);
        return Err(refusal(SIZE_INSUFFICIENT, line));
    }
    let problem = plan.operation.problem;
    work::submit(
        stream,
        format!("convolution, {:?}, engine {}", problem.pass, plan.engine),
        move || {
            use_workspace(workspace, plan.workspace)?;
            problem.run(at, plan.engine == TENSOR_CORE)
        },
    )
}

entries! { call;
    fn cudnnBackendCreateDescriptor(kind: u32, to: *mut usize) {
        let inner = Mutex::new(Inner { values: BTreeMap::new(), built: None });
        put(to, DESCRIPTORS.insert(Descriptor { kind: Kind::of(kind)?, inner }), NULL_POINTER)
    }
    fn cudnnBackendDestroyDescriptor(which: usize) {
        DESCRIPTORS.remove(which, BAD_PARAM).map(|_| ())
    }
    fn cudnnBackendInitialize(which: usize) {
        let descriptor = DESCRIPTORS.get(which, BAD_PARAM)?;
        *lock(&descriptor.inner) = Inner { values: BTreeMap::new(), built: None };
        Ok(())
    }
    fn cudnnBackendSetAttribute(which: usize, name: u32, value: u32, count: i64,
        from: *const c_void) {
        set(which, name, value, count, from)
    }
    fn cudnnBackendGetAttribute(which: usize, name: u32, value: u32, room: i64, count: *mut i64,
        to: *mut c_void) {
        get(which, name, value, room, count, to)
    }
    fn cudnnBackendFinalize(which: usize) {
        let descriptor: Arc<Descriptor> = DESCRIPTORS.get(which, BAD_PARAM)?;
        let mut inner = lock(&descriptor.inner);
        if inner.built.is_some() {
            return Err(refusal(BAD_PARAM, "a descriptor is finalised twice"));
        }
        let built = finalize::build(descriptor.kind, &inner.values)?;
        inner.built = Some(built);
        Ok(())
    }
    fn cudnnBackendExecute(handle: usize, plan: usize, pack: usize) {
        execute(handle, plan, pack)
    }
}
