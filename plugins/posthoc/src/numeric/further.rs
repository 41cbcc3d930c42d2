//! What further heads of the classifier give, checked.

use oodbench_sdk::{Error, Host, ImageBatch, Matrix, Result};

use super::check;

/// What a further head gives for images, a row for each.
pub struct HeadRows {
    data: Vec<f32>,
    n_rows: usize,
    n_cols: usize,
}

impl HeadRows {
    /// Runs the classifier on images; needs `LAYERS`.
    ///
    /// # Errors
    /// A head that the classifier does not have, or that is no matrix; NaN or infinity.
    pub fn of(host: &Host, images: ImageBatch<'_>, name: &str) -> Result<Self> {
        let layers = host.layers(images, &[name])?;
        let layer = layers.into_iter().next();
        let layer = layer.ok_or_else(|| Error::input(format!("there is no layer `{name}`")))?;
        let n_rows = images.len();
        let n_cols = match layer.shape[..] {
            [n, columns] if n == n_rows && columns > 0 => columns,
            ref shape => {
                return Err(Error::input(format!(
                    "layer `{name}` expected [{n_rows}, columns], got {shape:?}"
                )));
            }
        };
        check::finite(Matrix::new(&layer.data, n_rows, n_cols)?, name)?;
        Ok(Self { data: layer.data, n_rows, n_cols })
    }

    /// The same, with so many columns.
    ///
    /// # Errors
    /// As [`HeadRows::of`], and another number of columns.
    pub fn of_columns(
        host: &Host,
        images: ImageBatch<'_>,
        name: &str,
        n_cols: usize,
    ) -> Result<Self> {
        let rows = Self::of(host, images, name)?;
        if rows.n_cols != n_cols {
            let got = rows.n_cols;
            return Err(Error::input(format!(
                "layer `{name}` expected {n_cols} columns, got {got}"
            )));
        }
        Ok(rows)
    }

    /// Number of columns.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Every row in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.n_rows).map(|i| &self.data[i * self.n_cols..(i + 1) * self.n_cols])
    }
}
