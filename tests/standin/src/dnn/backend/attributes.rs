//! Which attributes each kind of descriptor has: their types, how many values, whether required.

use super::super::{BAD_PARAM, NOT_SUPPORTED};
use crate::api::{Outcome, refusal};

/// The kinds of descriptors, with the numbers that `cudnnBackendDescriptorType_t` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    Heuristics = 4,
    Plan = 5,
    Forward = 10,
    BackwardFilter = 11,
    BackwardData = 12,
    Graph = 15,
    VariantPack = 16,
    Tensor = 17,
}

impl Kind {
    pub(super) fn of(number: u32) -> Outcome<Self> {
        use Kind::*;
        let all = [
            Convolution,
            Engine,
            EngineConfig,
            Heuristics,
            Plan,
            Forward,
            BackwardFilter,
            BackwardData,
            Graph,
            VariantPack,
            Tensor,
        ];
        all.into_iter()
            .find(|kind| *kind as u32 == number)
            .ok_or_else(|| refusal(NOT_SUPPORTED, format!("descriptors of kind {number}")))
    }
}

/// The types of values, with the numbers that `cudnnBackendAttributeType_t` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Handle = 0,
    Data = 1,
    Boolean = 2,
    Int64 = 3,
    Float = 4,
    Pointer = 6,
    ConvolutionMode = 7,
    HeuristicMode = 8,
    NumericalNote = 11,
    Descriptor = 15,
    BehaviorNote = 19,
    Int32 = 23,
}

impl Type {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Boolean => 1,
            Self::Handle | Self::Int64 | Self::Pointer | Self::Descriptor => 8,
            _ => 4,
        }
    }
}

/// How many values an attribute has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    One,
    Some,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute {
    pub(super) name: u32,
    pub(super) kind: Kind,
    pub(super) value: Type,
    pub(super) count: Count,
    /// Has to be set before the descriptor is finalised.
    pub(super) required: bool,
    /// Can be set at all; the others can only be asked for.
    pub(super) settable: bool,
}

const fn must(name: u32, kind: Kind, value: Type, count: Count) -> Attribute {
    Attribute { name, kind, value, count, required: true, settable: true }
}

const fn may(name: u32, kind: Kind, value: Type, count: Count) -> Attribute {
    Attribute { name, kind, value, count, required: false, settable: true }
}

const fn told(name: u32, kind: Kind, value: Type, count: Count) -> Attribute {
    Attribute { name, kind, value, count, required: false, settable: false }
}

pub(super) const COMPUTE_TYPE: u32 = 100;
pub(super) const MODE: u32 = 101;
pub(super) const DILATIONS: u32 = 102;
pub(super) const STRIDES: u32 = 103;
pub(super) const AFTER: u32 = 104;
pub(super) const BEFORE: u32 = 105;
pub(super) const SPATIAL: u32 = 106;
pub(super) const HEURISTIC_MODE: u32 = 200;
pub(super) const HEURISTIC_GRAPH: u32 = 201;
pub(super) const HEURISTIC_RESULTS: u32 = 202;
pub(super) const CONFIG_ENGINE: u32 = 300;
pub(super) const CONFIG_WORKSPACE: u32 = 303;
pub(super) const PLAN_HANDLE: u32 = 400;
pub(super) const PLAN_CONFIG: u32 = 401;
pub(super) const PLAN_WORKSPACE: u32 = 402;
pub(super) const GRAPH_HANDLE: u32 = 800;
pub(super) const GRAPH_OPERATIONS: u32 = 801;
pub(super) const GRAPH_ENGINES: u32 = 802;
pub(super) const TENSOR_ALIGNMENT: u32 = 900;
pub(super) const TENSOR_TYPE: u32 = 901;
pub(super) const TENSOR_DIMS: u32 = 902;
pub(super) const TENSOR_STRIDES: u32 = 903;
pub(super) const TENSOR_ID: u32 = 906;
pub(super) const TENSOR_VIRTUAL: u32 = 907;
pub(super) const PACK_IDS: u32 = 1000;
pub(super) const PACK_POINTERS: u32 = 1001;
pub(super) const PACK_WORKSPACE: u32 = 1003;
pub(super) const ENGINE_GRAPH: u32 = 1300;
pub(super) const ENGINE_INDEX: u32 = 1301;
pub(super) const ENGINE_NUMERICAL: u32 = 1303;
pub(super) const ENGINE_BEHAVIOR: u32 = 1305;

/// Alpha, beta, convolution, w, x and y of an operation, in this order.
pub(super) const fn operation_names(kind: Kind) -> [u32; 6] {
    match kind {
        Kind::BackwardData => [706, 707, 708, 709, 710, 711],
        Kind::BackwardFilter => [712, 713, 714, 715, 716, 717],
        _ => [700, 701, 702, 703, 704, 705],
    }
}

const PLAIN: &[Attribute] = &[
    must(COMPUTE_TYPE, Kind::Convolution, Type::Data, Count::One),
    must(MODE, Kind::Convolution, Type::ConvolutionMode, Count::One),
    must(DILATIONS, Kind::Convolution, Type::Int64, Count::Some),
    must(STRIDES, Kind::Convolution, Type::Int64, Count::Some),
    must(AFTER, Kind::Convolution, Type::Int64, Count::Some),
    must(BEFORE, Kind::Convolution, Type::Int64, Count::Some),
    must(SPATIAL, Kind::Convolution, Type::Int64, Count::One),
    must(HEURISTIC_MODE, Kind::Heuristics, Type::HeuristicMode, Count::One),
    must(HEURISTIC_GRAPH, Kind::Heuristics, Type::Descriptor, Count::One),
    told(HEURISTIC_RESULTS, Kind::Heuristics, Type::Descriptor, Count::Some),
    may(203, Kind::Heuristics, Type::Int32, Count::One),
    must(CONFIG_ENGINE, Kind::EngineConfig, Type::Descriptor, Count::One),
    told(CONFIG_WORKSPACE, Kind::EngineConfig, Type::Int64, Count::One),
    may(PLAN_HANDLE, Kind::Plan, Type::Handle, Count::One),
    must(PLAN_CONFIG, Kind::Plan, Type::Descriptor, Count::One),
    told(PLAN_WORKSPACE, Kind::Plan, Type::Int64, Count::One),
    must(GRAPH_HANDLE, Kind::Graph, Type::Handle, Count::One),
    must(GRAPH_OPERATIONS, Kind::Graph, Type::Descriptor, Count::Some),
    told(GRAPH_ENGINES, Kind::Graph, Type::Int64, Count::One),
    must(TENSOR_ALIGNMENT, Kind::Tensor, Type::Int64, Count::One),
    must(TENSOR_TYPE, Kind::Tensor, Type::Data, Count::One),
    must(TENSOR_DIMS, Kind::Tensor, Type::Int64, Count::Some),
    must(TENSOR_STRIDES, Kind::Tensor, Type::Int64, Count::Some),
    must(TENSOR_ID, Kind::Tensor, Type::Int64, Count::One),
    may(TENSOR_VIRTUAL, Kind::Tensor, Type::Boolean, Count::One),
    must(PACK_IDS, Kind::VariantPack, Type::Int64, Count::Some),
    must(PACK_POINTERS, Kind::VariantPack, Type::Pointer, Count::Some),
    must(PACK_WORKSPACE, Kind::VariantPack, Type::Pointer, Count::One),
    must(ENGINE_GRAPH, Kind::Engine, Type::Descriptor, Count::One),
    must(ENGINE_INDEX, Kind::Engine, Type::Int64, Count::One),
    told(ENGINE_NUMERICAL, Kind::Engine, Type::NumericalNote, Count::Some),
    told(ENGINE_BEHAVIOR, Kind::Engine, Type::BehaviorNote, Count::Some),
    may(1306, Kind::Engine, Type::Int32, Count::One),
];

/// The attributes of a kind.
pub(super) fn of(kind: Kind) -> Vec<Attribute> {
    if matches!(kind, Kind::Forward | Kind::BackwardData | Kind::BackwardFilter) {
        let [alpha, beta, rest @ ..] = operation_names(kind);
        let scales = [alpha, beta].map(|name| must(name, kind, Type::Float, Count::One));
        let descriptors = rest.map(|name| must(name, kind, Type::Descriptor, Count::One));
        return scales.into_iter().chain(descriptors).collect();
    }
    PLAIN.iter().filter(|attribute| attribute.kind == kind).copied().collect()
}

/// An attribute of a kind.
///
/// # Errors
/// The kind has none of the name.
pub(super) fn find(kind: Kind, name: u32) -> Outcome<Attribute> {
    of(kind)
        .into_iter()
        .find(|attribute| attribute.name == name)
        .ok_or_else(|| refusal(BAD_PARAM, format!("a {kind:?} descriptor has no attribute {name}")))
}
