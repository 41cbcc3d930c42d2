//! Borrowed numbers: tensors and the splits that a detector is fitted on.

use abi_stable::StableAbi;
use abi_stable::std_types::RSlice;

/// A dense row-major tensor in somebody else's memory. `[host-owned]`
///
/// The meaning of the fields follows DLPack's `DLTensor`; only `f32` in CPU memory crosses the
/// boundary in this epoch.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The elements; their number is the product of `shape`.
    pub data: RSlice<'a, f32>,
    /// Sizes, outermost first. An empty shape says that there is no tensor.
    pub shape: RSlice<'a, usize>,
    /// DLPack's device type: 1 is CPU memory.
    pub device_type: i32,
    /// DLPack's device id.
    pub device_id: i32,
}

impl<'a> TensorView<'a> {
    /// DLPack's number for CPU memory.
    pub const CPU: i32 = 1;

    /// A view of CPU memory.
    ///
    /// # Panics
    ///
    /// When the product of `shape` is not the number of elements.
    pub fn new(data: &'a [f32], shape: &'a [usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} of a view");
        let (data, shape) = (RSlice::from_slice(data), RSlice::from_slice(shape));
        Self { data, shape, device_type: Self::CPU, device_id: 0 }
    }

    /// No tensor: what the detector did not ask for.
    pub fn absent() -> Self {
        Self { data: RSlice::EMPTY, shape: RSlice::EMPTY, device_type: Self::CPU, device_id: 0 }
    }

    /// Whether there is no tensor.
    pub fn is_absent(&self) -> bool {
        self.shape.is_empty()
    }

    /// Whether data and shape agree, and the memory is the CPU's.
    pub fn is_valid(&self) -> bool {
        let elements = self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let expected = if self.shape.is_empty() { Some(0) } else { elements };
        expected == Some(self.data.len()) && self.device_type == Self::CPU
    }
}

/// Which split a service is asked about.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug)]
pub struct SplitId(pub u32);

impl SplitId {
    /// In-distribution training images.
    pub const TRAIN: Self = Self(0);
    /// In-distribution validation images.
    pub const VAL: Self = Self(1);
    /// Out-of-distribution validation images; only with `Needs::VAL_OOD`.
    pub const VAL_OOD: Self = Self(2);
}

/// What is known of a split during `fit`. `[host-owned]`, mapped from a file: reading it twice
/// costs nothing but time.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct SplitView<'a> {
    /// Number of images.
    pub len: usize,
    /// Classes, one for each image, with `Needs::LABELS`; otherwise empty.
    pub labels: RSlice<'a, i64>,
    /// `[len, n_classes]` with `Needs::LOGITS`.
    pub logits: TensorView<'a>,
    /// `[len, n_features]` with `Needs::FEATURES`.
    pub features: TensorView<'a>,
}
