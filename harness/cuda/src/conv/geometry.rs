//! The sizes of a convolution.

use candle_core::{DType, Result, bail};

/// The three products of a convolution `y = x * w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `y` from `x` and `w`.
    Forward,
    /// The gradient of `x` from that of `y` and `w`.
    BackwardData,
    /// The gradient of `w` from that of `y` and `x`.
    BackwardFilter,
}

/// A convolution with square kernel, one stride and one padding for both directions.
///
/// # Shapes
/// - `x`: `[batch, height, width, c_in]`
/// - `w`: `[c_out, kernel, kernel, c_in]`
/// - `y`: `[batch, out_height(), out_width(), c_out]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Geometry {
    /// From the shapes of `x` and `w`.
    ///
    /// # Errors
    /// A shape is not that of an image or of a square kernel, the channels differ, a size is zero, or
    /// the kernel is larger than the padded image.
    pub fn new(x: &[usize], w: &[usize], stride: usize, padding: usize) -> Result<Self> {
        let (&[batch, height, width, c_in], &[c_out, kernel, across, w_in]) = (x, w) else {
            bail!(
                "convolve expected [batch, height, width, c_in] by [c_out, kernel, kernel, c_in], got {x:?} by {w:?}"
            );
        };
        if kernel != across || c_in != w_in {
            bail!("convolve {x:?} expected a weight [c_out, kernel, kernel, {c_in}], got {w:?}");
        }
        if x.contains(&0) || w.contains(&0) || stride == 0 {
            bail!("convolve expected sizes of at least 1, got {x:?} by {w:?} with stride {stride}");
        }
        if height + 2 * padding < kernel || width + 2 * padding < kernel {
            bail!(
                "convolve expected a kernel inside of the image with padding {padding}, got {x:?} by {w:?}"
            );
        }
        Ok(Self { batch, height, width, c_in, c_out, kernel, stride, padding })
    }

    #[must_use]
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    #[must_use]
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Output pixels of one image.
    pub(crate) fn out_pixels(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Numbers that one output pixel and channel sums over.
    pub(crate) fn window(&self) -> usize {
        self.kernel * self.kernel * self.c_in
    }

    /// Floating point operations of one pass, each of which multiplies and adds as often.
    pub(crate) fn operations(&self) -> f64 {
        2.0 * self.batch as f64
            * self.out_pixels() as f64
            * self.c_out as f64
            * self.window() as f64
    }

    /// Whether the convolution is a product of matrices as they lie in memory.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    pub(crate) fn x_shape(&self) -> [usize; 4] {
        [self.batch, self.height, self.width, self.c_in]
    }

    pub(crate) fn w_shape(&self) -> [usize; 4] {
        [self.c_out, self.kernel, self.kernel, self.c_in]
    }

    pub(crate) fn y_shape(&self) -> [usize; 4] {
        [self.batch, self.out_height(), self.out_width(), self.c_out]
    }

    /// The shape that a pass yields.
    pub(crate) fn result_shape(&self, pass: Pass) -> [usize; 4] {
        match pass {
            Pass::Forward => self.y_shape(),
            Pass::BackwardData => self.x_shape(),
            Pass::BackwardFilter => self.w_shape(),
        }
    }
}

/// What is to be computed: the key of everything that is kept for each shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    pub(crate) pass: Pass,
    pub(crate) geometry: Geometry,
    pub(crate) dtype: DType,
    /// Whether `f32` may be rounded to TF32. False for `bf16`.
    pub(crate) tf32: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Geometry { stride, padding, .. } = self.geometry;
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::BackwardData => "backward to the data",
            Pass::BackwardFilter => "backward to the filter",
        };
        write!(
            f,
            "{pass}, {:?} by {:?}, stride {stride}, padding {padding}, {}{}",
            self.geometry.x_shape(),
            self.geometry.w_shape(),
            self.dtype.as_str(),
            if self.tf32 { " as tf32" } else { "" }
        )
    }
}

/// Where the three tensors of a convolution lie. Each pass writes one of them and reads the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pointers {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) y: u64,
}
