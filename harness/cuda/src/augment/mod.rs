//! Training images on the device: picked out of 8-bit pixels, cropped, mirrored and noised, with
//! numbers that the host draws; and the loss of a predicted noise (`loss`).
//!
//! Images are those of the CPU bit for bit.

mod loss;

use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};

pub use self::loss::{Loss, noise_loss};
use crate::launch::{self, Arg, Module, View, to_u32};
use crate::op;
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_augment", ptx: ptx::AUGMENT };

/// What is cut out of which image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The image.
    pub index: u32,
    /// Where the cut begins in the image with its border.
    pub dy: u32,
    pub dx: u32,
    pub mirrored: bool,
}

impl Pick {
    /// As the kernel reads it.
    pub fn words(self) -> [u32; 4] {
        [self.index, self.dy, self.dx, u32::from(self.mirrored)]
    }
}

/// Images `pixel / 255 * factor + shift`, cut out of a black border that is `padding` wide.
///
/// Every pick has to name an image of `pixels`, and `dy` and `dx` of at most twice the padding: they
/// are on the device already, where nobody looks.
///
/// # Shapes
/// - `pixels`: `[n, height, width, 3]`, `u8`
/// - `picks`: `[batch, 4]`, `u32`: [`Pick::words`]
/// - result: `[batch, 3, height, width]`, `f32`
///
/// # Errors
/// Other shapes or types, no picks, or more than `u32` can number.
pub fn pick_images(
    pixels: &Tensor,
    picks: &Tensor,
    padding: usize,
    (factor, shift): (f32, f32),
) -> Result<Tensor> {
    let cut = |[pixels, picks]: [View<'_>; 2]| cut(pixels, picks, padding, (factor, shift));
    let (storage, shape) = op::with_views([pixels, picks], cut)?;
    Ok(op::tensor(storage, shape))
}

/// `xs * signal + noise * scale`, where `signal` and `scale` are numbers of each image.
///
/// # Shapes
/// - `xs`, `noise`, result: `[batch, …]`, `f32`
/// - `signal_and_scale`: `[2, batch]`, `f32`
///
/// # Errors
/// Other shapes or types, or no images.
pub fn diffuse(xs: &Tensor, noise: &Tensor, signal_and_scale: &Tensor) -> Result<Tensor> {
    let (storage, shape) = op::with_views([xs, noise, signal_and_scale], noised)?;
    Ok(op::tensor(storage, shape))
}

fn cut(
    pixels: View<'_>,
    picks: View<'_>,
    padding: usize,
    (factor, shift): (f32, f32),
) -> Result<(CudaStorage, Shape)> {
    expect("pick-images", pixels, DType::U8)?;
    expect("pick-images", picks, DType::U32)?;
    let (_, height, width, channels) = pixels.shape().dims4()?;
    let (batch, words) = picks.shape().dims2()?;
    if channels != 3 || words != 4 {
        let got = (pixels.shape(), picks.shape());
        bail!("pick-images expected [n, height, width, 3] and [batch, 4], got {got:?}");
    }
    let (device, shape) = (pixels.device(), Shape::from((batch, 3, height, width)));
    let stream = device.cuda_stream();
    let mut out = launch::alloc(device, DType::F32, shape.elem_count())?;
    {
        let n = batch * height * width;
        let (pixels, picks) = (pixels.pointer(&stream)?, picks.pointer(&stream)?);
        let to = launch::pointer_mut(&mut out, &stream)?;
        let args = [
            Arg::U32(to_u32(n)?),
            Arg::U32(to_u32(height)?),
            Arg::U32(to_u32(width)?),
            Arg::U32(to_u32(padding)?),
            Arg::F32(factor),
            Arg::F32(shift),
            pixels.arg(),
            picks.arg(),
            to.arg(),
        ];
        // SAFETY: the parameters of the kernel, which writes `out[0..3 n]` and reads `picks[0..4 batch]`;
        // that a pick names an image is the caller's.
        unsafe { launch::launch(device, &MODULE, "pick_images", launch::grid(n)?, &args) }?;
    }
    Ok((out, shape))
}

fn noised([xs, noise, factors]: [View<'_>; 3]) -> Result<(CudaStorage, Shape)> {
    let shape = same_shape("diffuse", xs, noise)?;
    expect("diffuse", factors, DType::F32)?;
    let (batch, n) = (shape.dims().first().copied().unwrap_or(0), shape.elem_count());
    if factors.dims() != [2, batch] {
        bail!("diffuse expected [2, {batch}], got {:?}", factors.shape());
    }
    let device = xs.device();
    let stream = device.cuda_stream();
    let mut out = launch::alloc(device, DType::F32, n)?;
    {
        let (xs, noise) = (xs.pointer(&stream)?, noise.pointer(&stream)?);
        let factors = factors.pointer(&stream)?;
        let scale = factors.address + (batch * DType::F32.size_in_bytes()) as u64;
        let to = launch::pointer_mut(&mut out, &stream)?;
        let args = [
            Arg::U64(n as u64),
            Arg::U32(to_u32(n / batch)?),
            xs.arg(),
            noise.arg(),
            factors.arg(),
            Arg::Pointer(scale),
            to.arg(),
        ];
        // SAFETY: the parameters of the kernel; `xs`, `noise` and `out` have `n` numbers, the factors two
        // times one for each image.
        unsafe { launch::launch(device, &MODULE, "diffuse", launch::grid(n)?, &args) }?;
    }
    Ok((out, shape))
}

fn expect(name: &str, view: View<'_>, dtype: DType) -> Result<()> {
    match view.dtype() == dtype {
        true => Ok(()),
        false => bail!("{name} expected {dtype:?}, got {:?}", view.dtype()),
    }
}

/// The shape that two tensors in `f32` have.
fn same_shape(name: &str, a: View<'_>, b: View<'_>) -> Result<Shape> {
    expect(name, a, DType::F32)?;
    expect(name, b, DType::F32)?;
    if a.shape() != b.shape() {
        bail!("{name} expected {:?}, got {:?}", a.shape(), b.shape());
    }
    Ok(a.shape().clone())
}
