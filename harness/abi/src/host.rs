//! What the host offers to a detector. Every service is `[any-thread]` during `fit` and `score`.

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, RSlice, RSliceMut, RStr, RString, RVec};

use crate::error::RawResult;
use crate::view::{SplitId, TensorView};

/// How important a message is.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLevel(pub u32);

impl LogLevel {
    /// Shown with `-v`.
    pub const DEBUG: Self = Self(0);
    /// Shown with `-v`.
    pub const INFO: Self = Self(1);
    /// Shown, and kept in the record.
    pub const WARN: Self = Self(2);
}

/// The classifier's last linear layer.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Head {
    /// `[n_classes, n_features]`
    pub weight: RVec<f32>,
    /// `[n_classes]`
    pub bias: RVec<f32>,
    /// Rows of `weight`.
    pub n_classes: usize,
    /// Columns of `weight`.
    pub n_features: usize,
}

/// What the classifier gives for a batch.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct ForwardOutputs {
    /// `[n, n_classes]`
    pub logits: RVec<f32>,
    /// `[n, n_features]`
    pub features: RVec<f32>,
}

/// An owned tensor with a name.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct NamedTensor {
    /// The name of the layer.
    pub name: RString,
    /// The elements, row-major.
    pub data: RVec<f32>,
    /// Sizes, outermost first.
    pub shape: RVec<usize>,
}

/// The services of the host.
#[sabi_trait]
pub trait Host: Send + Sync {
    /// A message for the user. `[any-thread]`
    fn log(&self, level: LogLevel, message: RStr<'_>);

    /// `done` of `total` units of the present call are finished; keeps a time limit on silence
    /// from striking. `[any-thread]`
    fn progress(&self, done: u64, total: u64);

    /// Whether the host wants the present call to end early with `CANCELLED`. `[any-thread]`
    fn cancelled(&self) -> bool;

    /// The seed of the run. The same seed must give the same scores.
    fn seed(&self) -> u64;

    /// How many threads the detector may use.
    fn threads(&self) -> usize;

    /// `cpu`, or `cuda:0` and so on: where the detector should compute, if it can.
    fn device(&self) -> RString;

    /// The path of the file that the parameter `name` stands for (`Needs::ASSETS`).
    fn asset(&self, name: RStr<'_>) -> RawResult<RString>;

    /// The last linear layer (`Needs::HEAD`).
    fn head(&self) -> RawResult<Head>;

    /// Images `first ..` of a split into `out`, whose length is a multiple of
    /// `3 * height * width` (`Needs::IMAGES`).
    fn images(&self, split: SplitId, first: usize, out: RSliceMut<'_, f32>) -> RawResult<()>;

    /// Sizes of one image: `[3, height, width]` (`Needs::IMAGES`).
    fn image_shape(&self) -> RawResult<RVec<usize>>;

    /// Logits and features of images in `[0, 1]`, `[n, 3, height, width]` (`Needs::FORWARD`).
    fn forward(&self, images: TensorView<'_>) -> RawResult<ForwardOutputs>;

    /// The vector-Jacobian product of the classifier (`Needs::GRADIENT`): the gradient of
    /// `sum(cotangent * at)` with respect to the images, where `at` is `"logits"`, `"features"`
    /// or the name of a layer. The shape is that of the images.
    fn vjp(
        &self,
        images: TensorView<'_>,
        at: RStr<'_>,
        cotangent: TensorView<'_>,
    ) -> RawResult<RVec<f32>>;

    /// The activations that [`Host::layers`] can give, in order of execution (`Needs::LAYERS`).
    fn layer_names(&self) -> RawResult<RVec<RString>>;

    /// Named activations of images in `[0, 1]` (`Needs::LAYERS`).
    fn layers(&self, images: TensorView<'_>, names: RVec<RString>) -> RawResult<RVec<NamedTensor>>;

    /// A service that a later host may offer, by id. `UNSUPPORTED` where it is unknown.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>>;
}

/// The host as a detector keeps it.
pub type HostBox = Host_TO<'static, RBox<()>>;
