//! The older interface: descriptors of tensors, filters and convolutions, and algorithms by number.

use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use super::convolution::{Addresses, Movement, Pass, Problem};
use super::tensor::{Number, Tensor};
use super::{
    BAD_PARAM, NOT_SUPPORTED, NULL_POINTER, SIZE_INSUFFICIENT, address, call, stream_of,
    use_workspace,
};
use crate::api::{Handles, Outcome, lock, peek, peek_all, put, refusal};
use crate::driver::entries;
use crate::work;

const IMPLICIT_PRECOMPUTED: u32 = 1;
/// What the algorithms that need one ask for.
const WORKSPACE: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Convolution {
    movement: Movement,
    groups: usize,
    /// `CUDNN_FMA_MATH` forbids tensor cores; the default lets singles be rounded to TF32.
    math: u32,
}

type Slot<T> = Mutex<Option<T>>;

static TENSORS: Handles<Slot<Tensor>> = Handles::new("tensor descriptor");
static FILTERS: Handles<Slot<Tensor>> = Handles::new("filter descriptor");
static CONVOLUTIONS: Handles<Slot<Convolution>> = Handles::new("convolution descriptor");

/// `cudnnConvolutionFwdAlgoPerf_t`; those of the backward passes are laid out alike.
#[repr(C)]
#[derive(Clone, Copy)]
struct Performance {
    algorithm: u32,
    status: u32,
    time: f32,
    memory: usize,
    determinism: u32,
    math: u32,
    reserved: [c_int; 3],
}

fn get<T: Copy>(all: &Handles<Slot<T>>, handle: usize) -> Outcome<T> {
    let slot = all.get(handle, BAD_PARAM)?;
    let value = *lock(&slot);
    value.ok_or_else(|| refusal(BAD_PARAM, "a descriptor is used before it is set"))
}

fn set<T>(all: &Handles<Slot<T>>, handle: usize, value: T) -> Outcome {
    *lock(&*all.get(handle, BAD_PARAM)?) = Some(value);
    Ok(())
}

/// Strides of a tensor that is packed.
fn packed(format: u32, [_, c, h, w]: [i64; 4]) -> Outcome<[i64; 4]> {
    match format {
        0 => Ok([c * h * w, h * w, w, 1]),
        1 => Ok([c * h * w, 1, w * c, c]),
        _ => Err(refusal(NOT_SUPPORTED, format!("tensor format {format}"))),
    }
}

fn dims_of(from: *const c_int, count: c_int) -> Outcome<Vec<i64>> {
    let count =
        usize::try_from(count).map_err(|_| refusal(BAD_PARAM, format!("{count} dimensions")))?;
    Ok(peek_all(from, count, NULL_POINTER)?.into_iter().map(i64::from).collect())
}

fn positive(name: &str, value: c_int, least: c_int) -> Outcome<usize> {
    if value < least {
        return Err(refusal(BAD_PARAM, format!("{name} expected at least {least}, got {value}")));
    }
    Ok(value as usize)
}

fn problem(
    pass: Pass,
    x: usize,
    w: usize,
    conv: usize,
    y: usize,
) -> Outcome<(Problem, Convolution)> {
    let conv = get(&CONVOLUTIONS, conv)?;
    let problem = Problem {
        pass,
        x: get(&TENSORS, x)?,
        w: get(&FILTERS, w)?,
        y: get(&TENSORS, y)?,
        movement: conv.movement,
        scales: [1.0, 0.0],
    };
    problem.check(Some(conv.groups))?;
    Ok((problem, conv))
}

/// Bytes that an algorithm asks for: nothing for the implicit product, some for the others.
fn workspace(pass: Pass, algorithm: u32) -> Outcome<usize> {
    let known = match pass {
        Pass::Forward => 8,
        Pass::BackwardData => 6,
        Pass::BackwardFilter => 7,
    };
    if algorithm >= known {
        return Err(refusal(BAD_PARAM, format!("algorithm {algorithm} of {known}")));
    }
    Ok(if algorithm == 0 { 0 } else { WORKSPACE })
}

fn suggest(pass: Pass, wanted: c_int, count: *mut c_int, to: *mut Performance) -> Outcome {
    let wanted = positive("the count of algorithms", wanted, 1)?;
    let best = [IMPLICIT_PRECOMPUTED, 0];
    for (at, algorithm) in best.iter().take(wanted).enumerate() {
        let found = Performance {
            algorithm: *algorithm,
            status: 0,
            time: -1.0,
            memory: workspace(pass, *algorithm)?,
            determinism: 1,
            math: 0,
            reserved: [0; 3],
        };
        put(to.wrapping_add(at), found, NULL_POINTER)?;
    }
    put(count, wanted.min(best.len()) as c_int, NULL_POINTER)
}

fn execute(
    handle: usize,
    (mut problem, conv): (Problem, Convolution),
    at: Addresses,
    algorithm: u32,
    (scratch, scratch_len): (usize, usize),
    [alpha, beta]: [*const c_void; 2],
) -> Outcome {
    let stream = stream_of(handle)?;
    let needed = workspace(problem.pass, algorithm)?;
    if scratch_len < needed {
        let line = format!("workspace expected {needed} bytes, got {scratch_len}");
        return Err(refusal(SIZE_INSUFFICIENT, line));
    }
    problem.scales = [peek(alpha.cast(), NULL_POINTER)?, peek(beta.cast(), NULL_POINTER)?];
    let tf32 = conv.math != 3 && crate::api::switched_on("STANDIN_TF32");
    work::submit(stream, format!("convolution, {:?}", problem.pass), move || {
        use_workspace(scratch, needed)?;
        problem.run(at, tf32)
    })
}

entries! { call;
    fn cudnnCreateTensorDescriptor(to: *mut usize) {
        put(to, TENSORS.insert(Mutex::new(None)), NULL_POINTER)
    }
    fn cudnnDestroyTensorDescriptor(which: usize) {
        TENSORS.remove(which, BAD_PARAM).map(|_| ())
    }
    fn cudnnSetTensor4dDescriptor(which: usize, format: u32, number: u32, n: c_int, c: c_int,
        h: c_int, w: c_int) {
        let dims = [n, c, h, w].map(i64::from);
        set(&TENSORS, which, Tensor::new(Number::of(number)?, &dims, &packed(format, dims)?)?)
    }
    fn cudnnSetTensor4dDescriptorEx(which: usize, number: u32, n: c_int, c: c_int, h: c_int,
        w: c_int, sn: c_int, sc: c_int, sh: c_int, sw: c_int) {
        let (dims, strides) = ([n, c, h, w].map(i64::from), [sn, sc, sh, sw].map(i64::from));
        set(&TENSORS, which, Tensor::new(Number::of(number)?, &dims, &strides)?)
    }
    fn cudnnSetTensorNdDescriptor(which: usize, number: u32, count: c_int, dims: *const c_int,
        strides: *const c_int) {
        let (dims, strides) = (dims_of(dims, count)?, dims_of(strides, count)?);
        set(&TENSORS, which, Tensor::new(Number::of(number)?, &dims, &strides)?)
    }
    fn cudnnCreateFilterDescriptor(to: *mut usize) {
        put(to, FILTERS.insert(Mutex::new(None)), NULL_POINTER)
    }
    fn cudnnDestroyFilterDescriptor(which: usize) {
        FILTERS.remove(which, BAD_PARAM).map(|_| ())
    }
    fn cudnnSetFilter4dDescriptor(which: usize, number: u32, format: u32, k: c_int, c: c_int,
        r: c_int, s: c_int) {
        let dims = [k, c, r, s].map(i64::from);
        set(&FILTERS, which, Tensor::new(Number::of(number)?, &dims, &packed(format, dims)?)?)
    }
    fn cudnnSetFilterNdDescriptor(which: usize, number: u32, format: u32, count: c_int,
        dims: *const c_int) {
        let dims = dims_of(dims, count)?;
        let four: [i64; 4] = dims.as_slice().try_into()
            .map_err(|_| refusal(NOT_SUPPORTED, format!("filters of {count} dimensions")))?;
        set(&FILTERS, which, Tensor::new(Number::of(number)?, &four, &packed(format, four)?)?)
    }
    fn cudnnCreateConvolutionDescriptor(to: *mut usize) {
        put(to, CONVOLUTIONS.insert(Mutex::new(None)), NULL_POINTER)
    }
    fn cudnnDestroyConvolutionDescriptor(which: usize) {
        CONVOLUTIONS.remove(which, BAD_PARAM).map(|_| ())
    }
    fn cudnnSetConvolution2dDescriptor(which: usize, pad_h: c_int, pad_w: c_int, u: c_int,
        v: c_int, dilation_h: c_int, dilation_w: c_int, mode: u32, compute: u32) {
        if Number::of(compute)? == Number::Bf16 || mode > 1 {
            return Err(refusal(BAD_PARAM, format!("mode {mode}, compute type {compute}")));
        }
        let padding = [positive("padding", pad_h, 0)?, positive("padding", pad_w, 0)?];
        let movement = Movement {
            before: padding,
            after: padding,
            strides: [positive("stride", u, 1)?, positive("stride", v, 1)?],
            dilations: [
                positive("dilation", dilation_h, 1)?,
                positive("dilation", dilation_w, 1)?,
            ],
            flipped: mode == 0,
        };
        set(&CONVOLUTIONS, which, Convolution { movement, groups: 1, math: 0 })
    }
    fn cudnnSetConvolutionGroupCount(which: usize, groups: c_int) {
        let groups = positive("the count of groups", groups, 1)?;
        set(&CONVOLUTIONS, which, Convolution { groups, ..get(&CONVOLUTIONS, which)? })
    }
    fn cudnnSetConvolutionMathType(which: usize, math: u32) {
        if math > 3 {
            return Err(refusal(BAD_PARAM, format!("math type {math}")));
        }
        set(&CONVOLUTIONS, which, Convolution { math, ..get(&CONVOLUTIONS, which)? })
    }
    fn cudnnGetConvolutionForwardAlgorithm_v7(handle: usize, x: usize, w: usize, conv: usize,
        y: usize, wanted: c_int, count: *mut c_int, to: *mut Performance) {
        stream_of(handle)?;
        problem(Pass::Forward, x, w, conv, y)?;
        suggest(Pass::Forward, wanted, count, to)
    }
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(handle: usize, w: usize, y: usize,
        conv: usize, x: usize, wanted: c_int, count: *mut c_int, to: *mut Performance) {
        stream_of(handle)?;
        problem(Pass::BackwardData, x, w, conv, y)?;
        suggest(Pass::BackwardData, wanted, count, to)
    }
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle: usize, x: usize, y: usize,
        conv: usize, w: usize, wanted: c_int, count: *mut c_int, to: *mut Performance) {
        stream_of(handle)?;
        problem(Pass::BackwardFilter, x, w, conv, y)?;
        suggest(Pass::BackwardFilter, wanted, count, to)
    }
    fn cudnnGetConvolutionForwardWorkspaceSize(handle: usize, x: usize, w: usize, conv: usize,
        y: usize, algorithm: u32, bytes: *mut usize) {
        stream_of(handle)?;
        problem(Pass::Forward, x, w, conv, y)?;
        put(bytes, workspace(Pass::Forward, algorithm)?, NULL_POINTER)
    }
    fn cudnnGetConvolutionBackwardDataWorkspaceSize(handle: usize, w: usize, y: usize,
        conv: usize, x: usize, algorithm: u32, bytes: *mut usize) {
        stream_of(handle)?;
        problem(Pass::BackwardData, x, w, conv, y)?;
        put(bytes, workspace(Pass::BackwardData, algorithm)?, NULL_POINTER)
    }
    fn cudnnGetConvolutionBackwardFilterWorkspaceSize(handle: usize, x: usize, y: usize,
        conv: usize, w: usize, algorithm: u32, bytes: *mut usize) {
        stream_of(handle)?;
        problem(Pass::BackwardFilter, x, w, conv, y)?;
        put(bytes, workspace(Pass::BackwardFilter, algorithm)?, NULL_POINTER)
    }
    fn cudnnConvolutionForward(handle: usize, alpha: *const c_void, x: usize, x_at: usize,
        w: usize, w_at: usize, conv: usize, algorithm: u32, scratch: *mut c_void,
        scratch_len: usize, beta: *const c_void, y: usize, y_at: usize) {
        let at = Addresses { x: x_at, w: w_at, y: y_at };
        execute(handle, problem(Pass::Forward, x, w, conv, y)?, at, algorithm,
            (address(scratch), scratch_len), [alpha, beta])
    }
    fn cudnnConvolutionBackwardData(handle: usize, alpha: *const c_void, w: usize, w_at: usize,
        y: usize, y_at: usize, conv: usize, algorithm: u32, scratch: *mut c_void,
        scratch_len: usize, beta: *const c_void, x: usize, x_at: usize) {
        let at = Addresses { x: x_at, w: w_at, y: y_at };
        execute(handle, problem(Pass::BackwardData, x, w, conv, y)?, at, algorithm,
            (address(scratch), scratch_len), [alpha, beta])
    }
    fn cudnnConvolutionBackwardFilter(handle: usize, alpha: *const c_void, x: usize, x_at: usize,
        y: usize, y_at: usize, conv: usize, algorithm: u32, scratch: *mut c_void,
        scratch_len: usize, beta: *const c_void, w: usize, w_at: usize) {
        let at = Addresses { x: x_at, w: w_at, y: y_at };
        execute(handle, problem(Pass::BackwardFilter, x, w, conv, y)?, at, algorithm,
            (address(scratch), scratch_len), [alpha, beta])
    }
}
