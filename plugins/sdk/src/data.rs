//! What a detector is fitted on and what it scores. Everything is borrowed from the host.

use oodbench_abi::{FitData as RawFit, ScoreBatch, SplitId, SplitView, TensorView};

use crate::error::{Error, Result};
use crate::host::ImageBatch;

/// A dense matrix, a row for each image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix<'a> {
    data: &'a [f32],
    n_rows: usize,
    n_cols: usize,
}

impl<'a> Matrix<'a> {
    /// A view of row-major data.
    ///
    /// # Errors
    /// Data that is no matrix of this size.
    pub fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> Result<Self> {
        if n_rows.checked_mul(n_cols) != Some(data.len()) {
            return Err(Error::input(format!(
                "matrix expected {n_rows} x {n_cols} values, got {}",
                data.len()
            )));
        }
        Ok(Self { data, n_rows, n_cols })
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of columns.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// One row.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.n_cols..(i + 1) * self.n_cols]
    }

    /// Every row in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let matrix = *self;
        (0..matrix.n_rows).map(move |i| matrix.row(i))
    }

    /// The values, row by row.
    pub fn values(&self) -> &'a [f32] {
        self.data
    }
}

/// The matrix behind a view, which must have `len` rows.
fn matrix<'a>(view: TensorView<'a>, len: usize, what: &str) -> Result<Matrix<'a>> {
    if view.is_absent() {
        return Err(Error::input(format!("{what} were not asked for in the detector's needs")));
    }
    let shape = view.shape.as_slice();
    match *shape {
        [rows, cols] if rows == len && view.is_valid() => {
            Matrix::new(view.data.as_slice(), rows, cols)
        }
        _ => Err(Error::input(format!("{what} expected [{len}, …], got {shape:?}"))),
    }
}

/// Images that are known during `fit`.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    view: SplitView<'a>,
    id: SplitId,
}

impl<'a> Split<'a> {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.view.len
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.view.len == 0
    }

    /// `[len, n_classes]`; needs `LOGITS`.
    ///
    /// # Errors
    /// Logits that were not asked for.
    pub fn logits(&self) -> Result<Matrix<'a>> {
        matrix(self.view.logits, self.view.len, "logits")
    }

    /// `[len, n_features]`; needs `FEATURES`.
    ///
    /// # Errors
    /// Features that were not asked for.
    pub fn features(&self) -> Result<Matrix<'a>> {
        matrix(self.view.features, self.view.len, "features")
    }

    /// Classes, one for each image; needs `LABELS`.
    ///
    /// # Errors
    /// Labels that were not asked for, or that the split does not have.
    pub fn labels(&self) -> Result<&'a [i64]> {
        let labels = self.view.labels.as_slice();
        if labels.len() != self.view.len {
            return Err(Error::input(format!(
                "labels expected {} values, got {}",
                self.view.len,
                labels.len()
            )));
        }
        Ok(labels)
    }

    /// Which split it is, for [`crate::Host::images`].
    pub fn id(&self) -> SplitId {
        self.id
    }
}

/// What a detector is fitted on.
#[derive(Clone, Copy, Debug)]
pub struct FitData<'a> {
    raw: RawFit<'a>,
}

impl<'a> FitData<'a> {
    pub(crate) fn new(raw: RawFit<'a>) -> Self {
        Self { raw }
    }

    /// In-distribution training images; needs `TRAIN`.
    pub fn train(&self) -> Split<'a> {
        Split { view: self.raw.train, id: SplitId::TRAIN }
    }

    /// In-distribution validation images; needs `VAL`.
    pub fn val(&self) -> Split<'a> {
        Split { view: self.raw.val, id: SplitId::VAL }
    }

    /// Out-of-distribution validation images; needs `VAL_OOD`.
    ///
    /// # Errors
    /// A benchmark without them, or a need that was not declared.
    pub fn val_ood(&self) -> Result<Split<'a>> {
        match self.raw.val_ood.into_option() {
            Some(view) => Ok(Split { view, id: SplitId::VAL_OOD }),
            None => Err(Error::input("there are no out-of-distribution validation images")),
        }
    }

    /// Classes of the classifier.
    pub fn n_classes(&self) -> usize {
        self.raw.n_classes
    }

    /// Features of the classifier.
    pub fn n_features(&self) -> usize {
        self.raw.n_features
    }
}

/// A batch to score.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    raw: ScoreBatch<'a>,
}

impl<'a> Batch<'a> {
    /// Checks the shapes that every detector relies on.
    pub(crate) fn new(raw: ScoreBatch<'a>) -> Result<Self> {
        if raw.keys.len() != raw.len {
            return Err(Error::input(format!("batch of {} got {} keys", raw.len, raw.keys.len())));
        }
        Ok(Self { raw })
    }

    /// Number of images; may be 0.
    pub fn len(&self) -> usize {
        self.raw.len
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.raw.len == 0
    }

    /// A number for each image that depends on the image's name alone. Random numbers must be
    /// derived from it and the host's seed, so that a score depends on neither batch nor order.
    pub fn keys(&self) -> &'a [u64] {
        self.raw.keys.as_slice()
    }

    /// `[len, n_classes]`; needs `LOGITS`.
    ///
    /// # Errors
    /// Logits that were not asked for.
    pub fn logits(&self) -> Result<Matrix<'a>> {
        matrix(self.raw.logits, self.raw.len, "logits")
    }

    /// `[len, n_features]`; needs `FEATURES`.
    ///
    /// # Errors
    /// Features that were not asked for.
    pub fn features(&self) -> Result<Matrix<'a>> {
        matrix(self.raw.features, self.raw.len, "features")
    }

    /// `[len, 3, height, width]` in `[0, 1]`; needs `IMAGES`.
    ///
    /// # Errors
    /// Images that were not asked for.
    pub fn images(&self) -> Result<ImageBatch<'a>> {
        let view = self.raw.images;
        if view.is_absent() {
            return Err(Error::input("images were not asked for in the detector's needs"));
        }
        match *view.shape.as_slice() {
            [len, 3, height, width] if len == self.raw.len && view.is_valid() => {
                ImageBatch::new(view.data.as_slice(), height, width)
            }
            ref shape => Err(Error::input(format!(
                "images expected [{}, 3, height, width], got {shape:?}",
                self.raw.len
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_needs_as_many_values_as_its_size_says() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let matrix = Matrix::new(&values, 2, 3).unwrap();
        assert_eq!(matrix.row(1), [4.0, 5.0, 6.0]);
        assert_eq!(matrix.rows().map(|row| row[0]).collect::<Vec<_>>(), [1.0, 4.0]);
        assert!(Matrix::new(&values, 2, 2).is_err());
        assert!(Matrix::new(&values, usize::MAX, 2).is_err(), "the product overflows");
    }

    #[test]
    fn a_matrix_without_columns_still_has_rows() {
        let rows = Matrix::new(&[], 3, 0).unwrap();
        assert_eq!(rows.rows().len(), 3);
    }

    #[test]
    fn views_are_checked_against_the_number_of_images() {
        let (values, shape) = ([0.0; 6], [3, 2]);
        let view = TensorView::new(&values, &shape);
        assert!(matrix(view, 3, "logits").is_ok());
        let error = matrix(view, 2, "logits").unwrap_err().to_string();
        assert_eq!(error, "logits expected [2, …], got [3, 2]");
        let error = matrix(TensorView::absent(), 2, "logits").unwrap_err().to_string();
        assert_eq!(error, "logits were not asked for in the detector's needs");
        let on_a_gpu = TensorView { device_type: 2, ..view };
        assert!(matrix(on_a_gpu, 3, "logits").is_err());
    }
}
