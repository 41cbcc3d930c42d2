//! Data in memory: arrays, images with what the classifier gives for them, and what a detector is
//! fitted on.

use oodbench_abi::abi_stable::std_types::RSlice;
use oodbench_abi::{Needs, SplitView, TensorView};

/// A dense row-major array. An empty shape says that there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryTensor {
    pub data: Vec<f32>,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl MemoryTensor {
    /// An array.
    ///
    /// # Panics
    ///
    /// When the product of `shape` is not the number of elements.
    pub fn new(data: Vec<f32>, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} of an array");
        Self { data, shape: shape.to_vec() }
    }

    /// Whether there is none.
    pub fn is_absent(&self) -> bool {
        self.shape.is_empty()
    }

    /// The outermost size.
    pub fn n_rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The rows with these numbers, in this order.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        if self.is_absent() {
            return Self::default();
        }
        let n = self.row_len();
        let data = rows.iter().flat_map(|&row| &self.data[row * n..(row + 1) * n]).copied();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self { data: data.collect(), shape }
    }

    /// A view of it, if `asked`.
    pub(super) fn view(&self, asked: bool) -> TensorView<'_> {
        if asked && !self.is_absent() {
            TensorView::new(&self.data, &self.shape)
        } else {
            TensorView::absent()
        }
    }
}

/// Images and what the classifier gives for them. What is not there is absent or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemorySplit {
    /// Classes, one for each image.
    pub labels: Vec<i64>,
    /// `[len, n_classes]`
    pub logits: MemoryTensor,
    /// `[len, n_features]`
    pub features: MemoryTensor,
    /// `[len, 3, height, width]` in `[0, 1]`
    pub images: MemoryTensor,
}

impl MemorySplit {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.logits.n_rows().max(self.features.n_rows()).max(self.images.n_rows())
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images with these numbers, in this order.
    ///
    /// # Panics
    ///
    /// When there is no such image.
    #[must_use]
    pub fn select(&self, images: &[usize]) -> Self {
        let labels = match self.labels.len() {
            0 => Vec::new(),
            _ => images.iter().map(|&i| self.labels[i]).collect(),
        };
        Self {
            labels,
            logits: self.logits.select(images),
            features: self.features.select(images),
            images: self.images.select(images),
        }
    }

    pub(super) fn view(&self, needs: Needs) -> SplitView<'_> {
        let labels: &[i64] = if needs.contains(Needs::LABELS) { &self.labels } else { &[] };
        SplitView {
            len: self.len(),
            labels: RSlice::from_slice(labels),
            logits: self.logits.view(needs.contains(Needs::LOGITS)),
            features: self.features.view(needs.contains(Needs::FEATURES)),
        }
    }
}

/// The last linear layer of a classifier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryHead {
    /// `[n_classes, n_features]`
    pub weight: Vec<f32>,
    /// `[n_classes]`
    pub bias: Vec<f32>,
}

/// What a detector is fitted on, and the last layer of the classifier behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryData {
    pub n_classes: usize,
    pub n_features: usize,
    /// Height and width of the images, where there are any.
    pub image_size: Option<(usize, usize)>,
    pub head: Option<MemoryHead>,
    pub train: MemorySplit,
    pub val: MemorySplit,
    pub val_ood: Option<MemorySplit>,
}
