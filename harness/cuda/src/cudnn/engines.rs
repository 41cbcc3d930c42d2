//! Which of cuDNN's engines may compute a problem, best first by cuDNN's own judgement.

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind,
    cudnnBackendHeurMode_t as Mode, cudnnBackendNumericalNote_t as N,
};

use super::descriptor::{Descriptor, Failure, Note, Reference};
use super::graph::Graph;
use crate::conv::Problem;

/// cuDNN lists some tens of engines for a convolution; the last of them are of no interest.
const MAX_CONFIGURATIONS: usize = 64;

/// Room for more notes than cuDNN has.
const MAX_NOTES: usize = 32;

/// An engine with its settings, and what cuDNN says of its arithmetic.
#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) descriptor: Descriptor,
    /// cuDNN's number of the engine.
    pub(super) engine: i64,
    /// One bit for each numerical note.
    notes: u32,
}

/// What the heuristics of mode A list, then the fallback engines. The order is the same each time
/// for the same cuDNN, device and problem.
///
/// For `f32` mode A lists hardly anything but tensor cores: cuDNN 9.28, asked without a GPU and with an
/// H200 described to it, named no engine for exact forward convolutions there, and three among the
/// fallbacks.
///
/// # Errors
/// Neither list can be had; the last refusal.
pub(super) fn list(
    handle: sys::cudnnHandle_t,
    graph: &Graph,
) -> Result<Vec<Configuration>, Failure> {
    let mut configurations = Vec::new();
    let mut refused = None;
    for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
        // Fallback engines are listed for an empty list of mode A too, so one refusal is no failure.
        match list_by(handle, graph, mode) {
            Ok(more) => configurations.extend(more),
            Err(failure) => refused = Some(failure),
        }
    }
    match refused {
        Some(failure) if configurations.is_empty() => Err(failure),
        _ => Ok(configurations),
    }
}

fn list_by(
    handle: sys::cudnnHandle_t,
    graph: &Graph,
    mode: Mode,
) -> Result<Vec<Configuration>, Failure> {
    let doing = "ask the heuristics";
    let mut heuristics = Descriptor::new(handle, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    heuristics.set(
        Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
        graph.descriptor().reference(),
        doing,
    )?;
    heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, mode, doing)?;
    let heuristics = heuristics.finalize(doing)?;
    let count = heuristics
        .count::<Reference>(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, doing)?
        .min(MAX_CONFIGURATIONS);
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut descriptors = Vec::with_capacity(count);
    for _ in 0..count {
        descriptors.push(Descriptor::new(handle, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?);
    }
    let mut references: Vec<_> = descriptors.iter().map(Descriptor::reference).collect();
    let written = heuristics.get(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, &mut references, doing)?;
    descriptors.truncate(written);
    descriptors.into_iter().map(|descriptor| inspect(handle, descriptor)).collect()
}

fn inspect(handle: sys::cudnnHandle_t, descriptor: Descriptor) -> Result<Configuration, Failure> {
    let doing = "look at an engine";
    let engine = Descriptor::new(handle, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
    descriptor.get(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &mut [engine.reference()], doing)?;
    let mut index = [0_i64];
    engine.get(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, &mut index, doing)?;
    let mut listed = [Note::default(); MAX_NOTES];
    let written = engine.get(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, &mut listed, doing)?;
    let notes = listed[..written].iter().fold(0, |notes, note| notes | bit(note.0));
    Ok(Configuration { descriptor, engine: index[0], notes })
}

fn bit(note: u32) -> u32 {
    1_u32.checked_shl(note).unwrap_or(0)
}

impl Configuration {
    /// Whether the engine's arithmetic is good enough: the same bits each time, factors not rounded to
    /// half precision, and for `f32` without TF32 no tensor cores, which would round to TF32, and no
    /// Winograd transform with large constants.
    pub(super) fn suits(&self, problem: &Problem) -> bool {
        let always =
            [N::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC, N::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS];
        let exact = [
            N::CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
            N::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
            N::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6,
            N::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13,
        ];
        let has = |note: &N| self.notes & bit(*note as u32) != 0;
        let is_exact = problem.dtype == DType::F32 && !problem.tf32;
        let exact: &[N] = if is_exact { &exact } else { &[] };
        !always.iter().chain(exact).any(has)
    }
}
