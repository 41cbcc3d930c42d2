//! A detector behind the boundary.

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RSlice, RSliceMut, RStr, RVec};

use crate::error::RawResult;
use crate::view::{SplitView, TensorView};

/// What a detector is fitted on. `[host-owned]`
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct FitData<'a> {
    /// In-distribution training images.
    pub train: SplitView<'a>,
    /// In-distribution validation images.
    pub val: SplitView<'a>,
    /// Out-of-distribution validation images, with `Needs::VAL_OOD`.
    pub val_ood: ROption<SplitView<'a>>,
    /// Classes of the classifier.
    pub n_classes: usize,
    /// Features of the classifier.
    pub n_features: usize,
}

/// A batch to score. `[host-owned]`
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct ScoreBatch<'a> {
    /// Number of images; may be 0.
    pub len: usize,
    /// A number for each image that depends on the image's name alone: what random numbers must
    /// be derived from, so that a score depends on neither batch nor order.
    pub keys: RSlice<'a, u64>,
    /// `[len, n_classes]` with `Needs::LOGITS`.
    pub logits: TensorView<'a>,
    /// `[len, n_features]` with `Needs::FEATURES`.
    pub features: TensorView<'a>,
    /// `[len, 3, height, width]` in `[0, 1]` with `Needs::IMAGES`.
    pub images: TensorView<'a>,
}

/// The life of a detector after `create`.
#[sabi_trait]
pub trait Detector: Send {
    /// Learns what it needs. Called once, before `score`, unless a state is restored instead.
    fn fit(&mut self, data: FitData<'_>) -> RawResult<()>;

    /// Writes one score for each image into `out`, whose length is `batch.len`. Higher means
    /// more out-of-distribution; every score is finite. `[after fit]`
    fn score(&mut self, batch: ScoreBatch<'_>, out: RSliceMut<'_, f32>) -> RawResult<()>;

    /// A capability beyond this table, by id ([`crate::extension`]). `UNSUPPORTED` where it is
    /// unknown.
    #[sabi(last_prefix_field)]
    fn extension(&mut self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>>;
}

/// A detector as the host keeps it.
pub type DetectorBox = Detector_TO<'static, RBox<()>>;
