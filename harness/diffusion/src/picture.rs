//! Tensors as pictures that a person can look at: single images and grids, as PNG.
//!
//! Values are rounded as torchvision's `save_image` does it (`255 x + 0.5`, clamped, truncated),
//! and a grid has its padding, so that pictures equal those of the reference. Reading image files
//! is left to `oodbench-datasets`.

use candle_core::{DType, Device, Tensor};

/// What making a picture fails with.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("picture expected a tensor [n, 1 or 3, height, width], got {got:?}")]
    Shape { got: Vec<usize> },
    #[error("picture expected finite values, got {value} in image {image}")]
    NotFinite { image: usize, value: f32 },
    #[error("picture expected pixels, got {width} x {height}")]
    Size { width: usize, height: usize },
    #[error("read the values of a picture")]
    Values(#[source] Box<candle_core::Error>),
    #[error("encode a picture")]
    Encode(#[source] Box<png::EncodingError>),
}

impl From<candle_core::Error> for PictureError {
    fn from(err: candle_core::Error) -> Self {
        Self::Values(Box::new(err))
    }
}

/// What the values of a tensor mean. Values outside are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Black is 0, white is 1.
    Unit,
    /// Black is -1, white is 1: what diffusion networks see.
    Signed,
}

/// How the images of a grid are laid out: row by row, from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Images in a row. Fewer images make a narrower grid.
    pub columns: usize,
    /// Pixels around each image; neighbours share them.
    pub padding: usize,
    /// Every so many rows the padding is three times as wide, to set groups apart; 0 for never.
    pub group_rows: usize,
    /// Every pixel becomes a square with this side. The padding is not scaled.
    pub scale: usize,
    /// What shows between the images.
    pub background: [u8; 3],
}

impl Grid {
    /// The layout of torchvision's `make_grid` with `nrow = columns`: two black pixels of padding.
    pub fn new(columns: usize) -> Self {
        Self { columns, padding: 2, group_rows: 0, scale: 1, background: [0; 3] }
    }

    /// Scaled up so that an image of `side` pixels has 64 at least.
    pub fn legible(self, side: usize) -> Self {
        Self { scale: 64usize.div_ceil(side.max(1)), ..self }
    }
}

/// RGB pixels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    /// `[height, width, 3]`
    pixels: Vec<u8>,
}

impl Picture {
    /// Each image of a batch as a picture of its own.
    ///
    /// # Shapes
    /// - `xs`: `[n, 3, height, width]`, or `[n, 1, height, width]` for grey images; any float
    ///
    /// # Errors
    /// Another shape, and values that are not finite.
    pub fn each(xs: &Tensor, range: Range) -> Result<Vec<Self>, PictureError> {
        let (n, channels, height, width) = match *xs.dims() {
            [n, channels @ (1 | 3), height, width] => (n, channels, height, width),
            ref got => return Err(PictureError::Shape { got: got.to_vec() }),
        };
        let area = height * width;
        let values = xs.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
        let values = values.to_vec1::<f32>()?;
        let mut pictures = Vec::with_capacity(n);
        for (image, values) in values.chunks_exact((channels * area).max(1)).enumerate() {
            if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
                return Err(PictureError::NotFinite { image, value });
            }
            let mut pixels = Vec::with_capacity(3 * area);
            for i in 0..area {
                for channel in 0..3 {
                    pixels.push(byte(values[(channel % channels) * area + i], range));
                }
            }
            pictures.push(Self { width, height, pixels });
        }
        Ok(pictures)
    }

    /// All images of a batch in one picture.
    ///
    /// # Shapes
    /// - `xs`: as for [`Picture::each`]
    ///
    /// # Errors
    /// As [`Picture::each`].
    pub fn grid(xs: &Tensor, range: Range, layout: &Grid) -> Result<Self, PictureError> {
        Ok(Self::collect(&Self::each(xs, range)?, layout))
    }

    /// Pictures in one. All cells are as large as the largest of them.
    pub fn collect(pictures: &[Self], layout: &Grid) -> Self {
        let columns = layout.columns.max(1).min(pictures.len());
        let rows = pictures.len().div_ceil(columns.max(1));
        let scale = layout.scale.max(1);
        let largest = |side: fn(&Self) -> usize| pictures.iter().map(side).max().unwrap_or(0);
        let cell_width = largest(|p| p.width) * scale + layout.padding;
        let cell_height = largest(|p| p.height) * scale + layout.padding;
        // Gaps of groups above a row.
        let gaps = |row: usize| row.checked_div(layout.group_rows).unwrap_or(0);
        let width = columns * cell_width + layout.padding;
        let height =
            rows * cell_height + layout.padding + 2 * layout.padding * gaps(rows.saturating_sub(1));
        let mut pixels = layout.background.repeat(width * height);
        for (i, picture) in pictures.iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            let left = column * cell_width + layout.padding;
            let top = row * cell_height + layout.padding + 2 * layout.padding * gaps(row);
            for y in 0..picture.height * scale {
                for x in 0..picture.width * scale {
                    let from = 3 * ((y / scale) * picture.width + x / scale);
                    let to = 3 * ((top + y) * width + left + x);
                    pixels[to..to + 3].copy_from_slice(&picture.pixels[from..from + 3]);
                }
            }
        }
        Self { width, height, pixels }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn height(&self) -> usize {
        self.height
    }

    /// `[height, width, 3]`
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes of a PNG file, the same ones for the same pixels.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn png(&self) -> Result<Vec<u8>, PictureError> {
        let size = |side: usize| u32::try_from(side).ok().filter(|&side| side > 0);
        let (Some(width), Some(height)) = (size(self.width), size(self.height)) else {
            return Err(PictureError::Size { width: self.width, height: self.height });
        };
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&self.pixels)?;
            writer.finish()
        });
        written.map_err(|err| PictureError::Encode(Box::new(err)))?;
        Ok(bytes)
    }
}

/// torchvision's rounding: `255 x + 0.5`, clamped, then truncated.
fn byte(x: f32, range: Range) -> u8 {
    let x = match range {
        Range::Unit => x,
        Range::Signed => x * 0.5 + 0.5,
    };
    // A cast of a float saturates at the ends of `u8`.
    (x.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(n: usize, channels: usize, side: usize) -> Tensor {
        let len = n * channels * side * side;
        let values: Vec<f32> = (0..len).map(|i| i as f32 / len as f32).collect();
        Tensor::from_vec(values, (n, channels, side, side), &Device::Cpu).unwrap()
    }

    #[test]
    fn values_are_rounded_as_torchvision_does() {
        // From torchvision: x.mul(255).add_(0.5).clamp_(0, 255).to(uint8).
        let cases = [(0.0, 0), (0.5, 128), (1.0, 255), (-3.0, 0), (9.0, 255), (0.00197, 1)];
        for (x, expected) in cases {
            assert_eq!(byte(x, Range::Unit), expected, "{x}");
            assert_eq!(byte(x * 2.0 - 1.0, Range::Signed), expected, "{x}");
        }
        assert_eq!(byte(0.00195, Range::Unit), 0);
    }

    #[test]
    fn channels_become_colours() {
        let x = Tensor::new(&[[[[1f32]], [[0.0]], [[0.5]]]], &Device::Cpu).unwrap();
        assert_eq!(Picture::each(&x, Range::Unit).unwrap()[0].pixels(), [255, 0, 128]);
        let grey = Tensor::new(&[[[[1f32]]]], &Device::Cpu).unwrap();
        assert_eq!(Picture::each(&grey, Range::Unit).unwrap()[0].pixels(), [255, 255, 255]);
    }

    #[test]
    fn a_grid_has_the_size_of_torchvisions() {
        let size = |n, columns| {
            let grid = Picture::grid(&images(n, 3, 4), Range::Unit, &Grid::new(columns)).unwrap();
            (grid.width(), grid.height())
        };
        // From torchvision: make_grid(torch.zeros(n, 3, 4, 4), nrow=columns).shape.
        assert_eq!(size(6, 3), (20, 14));
        assert_eq!(size(7, 3), (20, 20));
        assert_eq!(size(2, 8), (14, 8));
    }

    #[test]
    fn images_lie_where_the_layout_says() {
        let layout = Grid { scale: 2, group_rows: 1, background: [9, 9, 9], ..Grid::new(1) };
        let grid = Picture::grid(&images(2, 1, 1), Range::Unit, &layout).unwrap();
        assert_eq!((grid.width(), grid.height()), (6, 14));
        let column: Vec<u8> = (0..14).map(|y| grid.pixels()[3 * (y * 6 + 3)]).collect();
        assert_eq!(column, [9, 9, 0, 0, 9, 9, 9, 9, 9, 9, 128, 128, 9, 9]);
        assert_eq!(Grid::new(1).legible(28).scale, 3);
    }

    #[test]
    fn a_png_holds_the_pixels() {
        let grid = Picture::grid(&images(5, 3, 4), Range::Signed, &Grid::new(2)).unwrap();
        let bytes = grid.png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width as usize, info.height as usize), (grid.width(), grid.height()));
        assert_eq!(pixels, grid.pixels());
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let check = |xs: &Tensor, expected: &str| {
            let err = Picture::grid(xs, Range::Unit, &Grid::new(2)).and_then(|grid| grid.png());
            assert_eq!(err.unwrap_err().to_string(), expected);
        };
        check(
            &images(1, 2, 2),
            "picture expected a tensor [n, 1 or 3, height, width], got [1, 2, 2, 2]",
        );
        let nan = (images(2, 1, 1).log().unwrap() * -1.0).unwrap();
        check(&nan, "picture expected finite values, got inf in image 0");
        let none = Tensor::zeros((1, 3, 0, 0), DType::F32, &Device::Cpu).unwrap();
        let picture = Picture::grid(&none, Range::Unit, &Grid { padding: 0, ..Grid::new(1) });
        assert_eq!(
            picture.and_then(|p| p.png()).unwrap_err().to_string(),
            "picture expected pixels, got 0 x 0"
        );
    }
}
