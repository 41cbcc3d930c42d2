//! JPEG through libjpeg-turbo's C code as the `mozjpeg` crate packages it.
//!
//! Pillow links libjpeg-turbo, and this is the same decoder: the accurate integer inverse DCT and
//! triangle-filter chroma upsampling, bit for bit. Measured on 2,299 JPEGs of Tiny ImageNet and
//! DTD after resizing to 32: this decoder never differs; zune-jpeg 0.5 (what the `image` crate
//! uses) is off by more than one grey level on 93 % of the images and by up to 3; jpeg-decoder 0.3
//! on 73 %. Detectors see such differences, so the fast pure-Rust decoders are not used.

use std::any::Any;
use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use mozjpeg::{Decompress, decompress::Format};

use super::{DecodeError, RgbImage, check_size, spread};

const FORMAT: &str = "JPEG";

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let exhausted = Cell::new(false);
    let input = Input { rest: bytes, exhausted: &exhausted };
    // libjpeg reports a fatal error by unwinding through its own frames.
    let outcome = catch_unwind(AssertUnwindSafe(|| decode_input(input)));
    match outcome {
        Ok(Ok(image)) => Ok(image),
        _ if exhausted.get() => Err(DecodeError::Truncated { format: FORMAT }),
        Ok(Err(error)) => Err(error),
        Err(payload) => Err(DecodeError::corrupt(FORMAT, reason(&*payload))),
    }
}

fn decode_input(input: Input<'_>) -> Result<RgbImage, DecodeError> {
    let failed = |error: io::Error| DecodeError::corrupt(FORMAT, error);
    let jpeg = Decompress::builder().from_reader(input).map_err(failed)?;
    let (width, height) = check_size(FORMAT, jpeg.width(), jpeg.height())?;
    let pixels = match jpeg.image().map_err(failed)? {
        Format::RGB(mut rows) => rows.read_scanlines::<u8>().map_err(failed)?,
        Format::Gray(mut rows) => spread(rows.read_scanlines::<u8>().map_err(failed)?),
        Format::CMYK(mut rows) => cmyk_to_rgb(&rows.read_scanlines::<u8>().map_err(failed)?),
    };
    Ok(RgbImage { width, height, pixels })
}

/// Pillow takes every four-channel JPEG for Adobe's, which stores ink inverted: 255 is no ink.
fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for pixel in cmyk.chunks_exact(4) {
        let white = u32::from(pixel[3]);
        for &value in &pixel[..3] {
            // ink * white / 255, rounded, in integers.
            let product = u32::from(255 - value) * white + 128;
            let shaded = white.saturating_sub(((product >> 8) + product) >> 8);
            rgb.push(shaded.min(255) as u8);
        }
    }
    rgb
}

fn reason(payload: &(dyn Any + Send)) -> &str {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("not readable");
    text.strip_prefix("libjpeg fatal error: ").unwrap_or(text)
}

/// The bytes, then an error. An end of file would not do: libjpeg answers that with a made-up end
/// marker and grey pixels.
struct Input<'a> {
    rest: &'a [u8],
    exhausted: &'a Cell<bool>,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.exhausted.set(true);
            return Err(io::Error::other("the data ends before the image does"));
        }
        Ok(self.rest)
    }

    fn consume(&mut self, count: usize) {
        self.rest = &self.rest[count.min(self.rest.len())..];
    }
}

#[cfg(test)]
mod tests {
    use mozjpeg::{ColorSpace, Compress};

    use super::*;

    /// A JPEG of vertical stripes.
    fn encode(colours: ColorSpace, channels: usize, width: usize, height: usize) -> Vec<u8> {
        let mut encoder = Compress::new(colours);
        encoder.set_size(width, height);
        encoder.set_color_space(colours);
        let mut started = encoder.start_compress(Vec::new()).unwrap();
        let line: Vec<u8> = (0..width * channels).map(|at| (at * 7 % 256) as u8).collect();
        (0..height).for_each(|_| started.write_scanlines(&line).unwrap());
        started.finish().unwrap()
    }

    #[test]
    fn every_colour_space_becomes_rgb() {
        let spaces =
            [(ColorSpace::JCS_RGB, 3), (ColorSpace::JCS_GRAYSCALE, 1), (ColorSpace::JCS_CMYK, 4)];
        for (colours, channels) in spaces {
            let image = decode(&encode(colours, channels, 19, 11)).unwrap();
            assert_eq!((image.width, image.height), (19, 11));
            assert_eq!(image.pixels.len(), 19 * 11 * 3);
        }
    }

    #[test]
    fn inverted_ink_becomes_pillows_rgb() {
        // Image.frombytes("CMYK", (1, 1), 255 - stored).convert("RGB"), Pillow 13.0.
        assert_eq!(cmyk_to_rgb(&[255, 255, 255, 255]), [255, 255, 255]);
        assert_eq!(cmyk_to_rgb(&[0, 128, 255, 200]), [0, 100, 200]);
        assert_eq!(cmyk_to_rgb(&[10, 200, 33, 77]), [3, 60, 10]);
    }

    #[test]
    fn truncated_files_are_refused_wherever_they_end() {
        let whole = encode(ColorSpace::JCS_RGB, 3, 64, 48);
        assert!(decode(&whole).is_ok());
        for cut in 3..whole.len() - 2 {
            let error = decode(&whole[..cut]).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { format: "JPEG" }), "{cut}: {error}");
        }
    }

    #[test]
    fn damaged_headers_are_errors_with_the_decoders_reason() {
        let mut bytes = encode(ColorSpace::JCS_RGB, 3, 8, 8);
        let frame =
            bytes.windows(2).position(|window| window[0] == 0xFF && window[1] & 0xFC == 0xC0);
        // The sample precision.
        bytes[frame.unwrap() + 4] = 77;
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "JPEG: Unsupported JPEG data precision 77");
    }
}
