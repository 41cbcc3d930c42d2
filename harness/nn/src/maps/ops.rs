//! Each channels-last operation on the device that its tensor lies on.

use candle_core::{DType, Result, Tensor};

use super::reference;

/// Defines functions that are those of `oodbench-cuda` on a GPU and those of [`reference`] elsewhere.
macro_rules! by_device {
    ($($vis:vis fn $name:ident($xs:ident: &Tensor $(, $arg:ident: $of:ty)* $(,)?);)*) => {$(
        #[doc = concat!("See [`reference::", stringify!($name), "`].")]
        ///
        /// # Errors
        /// Shapes or dtypes that do not fit.
        $vis fn $name($xs: &Tensor $(, $arg: $of)*) -> Result<Tensor> {
            #[cfg(feature = "cuda")]
            if $xs.device().is_cuda() {
                return oodbench_cuda::ops::$name($xs $(, $arg)*);
            }
            reference::$name($xs $(, $arg)*)
        }
    )*};
}

by_device! {
    pub(crate) fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize);
    pub(crate) fn pack_weight(weight: &Tensor, dtype: DType, padded_out: usize, padded_in: usize);
    pub(crate) fn group_norm(
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        shift: Option<&Tensor>,
        groups: usize,
        eps: f64,
        silu: bool,
    );
    pub(crate) fn group_norm_joined(
        a: &Tensor,
        b: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        shift: Option<&Tensor>,
        groups: usize,
        eps: f64,
        silu: bool,
    );
    pub(crate) fn project_joined(a: &Tensor, b: &Tensor, weight: &Tensor);
    pub(crate) fn add(a: &Tensor, b: &Tensor, bias: Option<&Tensor>);
    pub(crate) fn add_bias(xs: &Tensor, bias: &Tensor);
    pub(crate) fn cat_channels(a: &Tensor, b: &Tensor);
    pub(crate) fn upsample_2x(xs: &Tensor);
    pub(crate) fn avg_pool_2x(xs: &Tensor);
    pub(crate) fn pad_end(xs: &Tensor);
    pub(crate) fn attention(qkv: &Tensor, heads: usize, scale: f64);
    pub(crate) fn dropout(xs: &Tensor, p: f64, key: u64);
    pub(crate) fn to_channels_last(xs: &Tensor, dtype: DType, padded: usize);
    pub(crate) fn to_channels_first(xs: &Tensor, channels: usize);
    pub(crate) fn scale_shift(xs: &Tensor, scale: &Tensor, shift: &Tensor, relu: bool);
    pub(crate) fn max_pool_3x3_stride_2(xs: &Tensor);
}

/// A row added to every row, which needs nothing from the host: candle's own broadcasting sends the
/// strides along.
///
/// # Shapes
/// `rows`: `[batch, channels]`, `row`: `[channels]`, both `f32`
pub(crate) fn add_row(rows: &Tensor, row: &Tensor) -> Result<Tensor> {
    let (batch, channels) = rows.dims2()?;
    add_bias(&rows.reshape((batch, 1, 1, channels))?, row)?.reshape((batch, channels))
}
