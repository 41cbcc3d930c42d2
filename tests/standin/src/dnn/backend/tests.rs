//! The graph interface, called as a program calls it.

use std::ffi::c_void;
use std::ptr::null_mut;

use super::super::{
    ATTRIBUTE_TYPE, BAD_PARAM, DESCRIPTOR_TYPE, MISALIGNED, NOT_FINALIZED, NOT_SUPPORTED,
    NULL_POINTER, SHAPE_MISMATCH, SIZE_INSUFFICIENT,
};
use super::attributes::*;
use crate::driver::{Kind as MemoryKind, memory};

unsafe extern "C" {
    fn cudnnCreate(handle: *mut usize) -> u32;
    fn cudnnBackendCreateDescriptor(kind: u32, to: *mut usize) -> u32;
    fn cudnnBackendSetAttribute(
        which: usize,
        name: u32,
        value: u32,
        count: i64,
        from: *const c_void,
    ) -> u32;
    fn cudnnBackendGetAttribute(
        which: usize,
        name: u32,
        value: u32,
        room: i64,
        count: *mut i64,
        to: *mut c_void,
    ) -> u32;
    fn cudnnBackendFinalize(which: usize) -> u32;
    fn cudnnBackendExecute(handle: usize, plan: usize, pack: usize) -> u32;
}

fn create(kind: Kind) -> usize {
    let mut made = 0;
    // SAFETY: room for one handle.
    assert_eq!(unsafe { cudnnBackendCreateDescriptor(kind as u32, &raw mut made) }, 0);
    made
}

fn set<T>(which: usize, name: u32, value: Type, values: &[T]) -> u32 {
    let (count, from) = (values.len() as i64, values.as_ptr().cast());
    // SAFETY: as many values as are said.
    unsafe { cudnnBackendSetAttribute(which, name, value as u32, count, from) }
}

fn finalize(which: usize) -> u32 {
    // SAFETY: a plain value.
    unsafe { cudnnBackendFinalize(which) }
}

/// Sets attributes that have to be taken, and finalises.
fn made(kind: Kind, fill: impl FnOnce(usize)) -> Result<usize, u32> {
    let which = create(kind);
    fill(which);
    match finalize(which) {
        0 => Ok(which),
        code => Err(code),
    }
}

fn tensor(dims: [i64; 4], id: i64) -> usize {
    let [_, c, h, w] = dims;
    made(Kind::Tensor, |which| {
        assert_eq!(set(which, TENSOR_TYPE, Type::Data, &[0_u32]), 0);
        assert_eq!(set(which, TENSOR_DIMS, Type::Int64, &dims), 0);
        assert_eq!(set(which, TENSOR_STRIDES, Type::Int64, &[c * h * w, 1, w * c, c]), 0);
        assert_eq!(set(which, TENSOR_ID, Type::Int64, &[id]), 0);
        assert_eq!(set(which, TENSOR_ALIGNMENT, Type::Int64, &[16_i64]), 0);
    })
    .unwrap()
}

fn movement() -> usize {
    made(Kind::Convolution, |which| {
        assert_eq!(set(which, SPATIAL, Type::Int64, &[2_i64]), 0);
        assert_eq!(set(which, COMPUTE_TYPE, Type::Data, &[0_u32]), 0);
        assert_eq!(set(which, MODE, Type::ConvolutionMode, &[1_u32]), 0);
        for (name, value) in [(BEFORE, 1_i64), (AFTER, 1), (STRIDES, 1), (DILATIONS, 1)] {
            assert_eq!(set(which, name, Type::Int64, &[value; 2]), 0);
        }
    })
    .unwrap()
}

fn operation(output: [i64; 4]) -> Result<usize, u32> {
    let [alpha, beta, convolution, w, x, y] = operation_names(Kind::Forward);
    let (input, filter, output) =
        (tensor([1, 2, 4, 4], 1), tensor([3, 2, 3, 3], 2), tensor(output, 3));
    made(Kind::Forward, |which| {
        assert_eq!(set(which, alpha, Type::Float, &[1_f32]), 0);
        assert_eq!(set(which, beta, Type::Float, &[0_f32]), 0);
        for (name, value) in [(convolution, movement()), (w, filter), (x, input), (y, output)] {
            assert_eq!(set(which, name, Type::Descriptor, &[value]), 0);
        }
    })
}

fn graph(handle: usize) -> usize {
    let operation = operation([1, 3, 4, 4]).unwrap();
    made(Kind::Graph, |which| {
        assert_eq!(set(which, GRAPH_HANDLE, Type::Handle, &[handle]), 0);
        assert_eq!(set(which, GRAPH_OPERATIONS, Type::Descriptor, &[operation]), 0);
    })
    .unwrap()
}

/// The configurations that a heuristic mode lists, with the notes of their engines.
fn listed(handle: usize, mode: u32) -> Vec<(usize, Vec<u32>)> {
    let heuristics = made(Kind::Heuristics, |which| {
        assert_eq!(set(which, HEURISTIC_GRAPH, Type::Descriptor, &[graph(handle)]), 0);
        assert_eq!(set(which, HEURISTIC_MODE, Type::HeuristicMode, &[mode]), 0);
    })
    .unwrap();
    let get = |which, name, value: Type, room, to: *mut c_void| {
        let mut count = 0;
        // SAFETY: as much room as is said.
        let code = unsafe {
            cudnnBackendGetAttribute(which, name, value as u32, room, &raw mut count, to)
        };
        assert_eq!(code, 0);
        count
    };
    let count = get(heuristics, HEURISTIC_RESULTS, Type::Descriptor, 0, null_mut());
    let mut found: Vec<usize> = (0..count).map(|_| create(Kind::EngineConfig)).collect();
    get(heuristics, HEURISTIC_RESULTS, Type::Descriptor, count, found.as_mut_ptr().cast());
    found
        .into_iter()
        .map(|config| {
            let mut engine = create(Kind::Engine);
            get(config, CONFIG_ENGINE, Type::Descriptor, 1, (&raw mut engine).cast());
            let mut notes = [0_u32; 8];
            let to = notes.as_mut_ptr().cast();
            let count = get(engine, ENGINE_NUMERICAL, Type::NumericalNote, 8, to);
            (config, notes[..count as usize].to_vec())
        })
        .collect()
}

fn plan(handle: usize, config: usize) -> Result<usize, u32> {
    made(Kind::Plan, |which| {
        assert_eq!(set(which, PLAN_HANDLE, Type::Handle, &[handle]), 0);
        assert_eq!(set(which, PLAN_CONFIG, Type::Descriptor, &[config]), 0);
    })
}

fn pack(pointers: [usize; 3], workspace: usize) -> Result<usize, u32> {
    made(Kind::VariantPack, |which| {
        assert_eq!(set(which, PACK_IDS, Type::Int64, &[1_i64, 2, 3]), 0);
        assert_eq!(set(which, PACK_POINTERS, Type::Pointer, &pointers), 0);
        assert_eq!(set(which, PACK_WORKSPACE, Type::Pointer, &[workspace]), 0);
    })
}

fn place(count: usize, value: f32) -> usize {
    let start = memory().allocate(count * 4, MemoryKind::Device).unwrap();
    // SAFETY: just allocated with this length.
    unsafe { std::slice::from_raw_parts_mut(start as *mut f32, count) }.fill(value);
    start
}

fn handle() -> usize {
    let mut handle = 0;
    // SAFETY: room for one handle.
    assert_eq!(unsafe { cudnnCreate(&raw mut handle) }, 0);
    handle
}

#[test]
fn a_convolution_goes_from_descriptors_to_numbers() {
    const FALLBACK: u32 = 2;
    const MODE_A: u32 = 3;
    let handle = handle();
    let best = listed(handle, MODE_A);
    assert_eq!(best.len(), 2);
    assert_eq!(plan(handle, best[0].0), Err(NOT_SUPPORTED), "listed, and not to be had");
    assert_eq!(best[1].1, [0], "it uses tensor cores");
    let exact = listed(handle, FALLBACK);
    assert_eq!(exact[0].1, [0_u32; 0]);
    let plan = plan(handle, exact[0].0).unwrap();
    let mut bytes = 0_i64;
    let to = (&raw mut bytes).cast();
    let name = PLAN_WORKSPACE;
    // SAFETY: room for one number.
    let code =
        unsafe { cudnnBackendGetAttribute(plan, name, Type::Int64 as u32, 1, null_mut(), to) };
    assert_eq!(code, 0);
    assert!(bytes > 0);
    let (x, w, y) = (place(32, 1.0), place(54, 2.0), place(48, f32::NAN));
    let workspace = place(bytes as usize / 4, 0.0);
    // SAFETY: plain values.
    let execute = |pack| unsafe { cudnnBackendExecute(handle, plan, pack) };
    assert_eq!(execute(pack([x, w, y], workspace).unwrap()), 0);
    // SAFETY: just written.
    let found = unsafe { std::slice::from_raw_parts(y as *const f32, 48) };
    // A corner sees 4 of 9 taps, an edge 6, each of 2 channels with 1 x 2.
    assert_eq!([found[0], found[3], found[15]], [16.0, 24.0, 36.0]);
    let short = place(bytes as usize / 4 - 1, 0.0);
    assert_eq!(execute(pack([x, w, y], short).unwrap()), SIZE_INSUFFICIENT);
    assert_eq!(pack([x, 0, y], workspace), Err(NULL_POINTER));
    assert_eq!(execute(pack([x + 4, w, y], workspace).unwrap()), MISALIGNED);
}

#[test]
fn descriptors_are_checked_when_they_are_set_and_finalised() {
    let which = create(Kind::Tensor);
    assert_eq!(finalize(which), BAD_PARAM, "everything is missing");
    assert_eq!(set(which, TENSOR_ID, Type::Float, &[1_f32]), ATTRIBUTE_TYPE);
    assert_eq!(set(which, TENSOR_ID, Type::Int64, &[1_i64, 2]), BAD_PARAM, "two ids");
    assert_eq!(set(which, SPATIAL, Type::Int64, &[2_i64]), BAD_PARAM, "of another kind");
    assert_eq!(operation([1, 3, 5, 4]), Err(SHAPE_MISMATCH));
    let operation = create(Kind::Forward);
    let names = operation_names(Kind::Forward);
    let loose = create(Kind::Tensor);
    assert_eq!(set(operation, names[4], Type::Descriptor, &[loose]), NOT_FINALIZED);
    let done = tensor([1, 2, 3, 4], 9);
    assert_eq!(set(done, TENSOR_ID, Type::Int64, &[1_i64]), BAD_PARAM, "it is finalised");
    assert_eq!(finalize(done), BAD_PARAM, "twice");
    let config = made(Kind::EngineConfig, |which| {
        assert_eq!(set(which, CONFIG_ENGINE, Type::Descriptor, &[done]), 0);
    });
    assert_eq!(config, Err(DESCRIPTOR_TYPE));
}
