//! Writing samples, group by group of images, though the file has the timestep outermost.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oodbench_nn::npz::{Dtype, NpzWriter};

use super::{SamplesError, array};
use crate::denoise::change::Space;
use crate::denoise::process::Sample;

/// How much there will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSizes {
    pub n_timesteps: usize,
    pub n_images: usize,
    pub repeats: usize,
    /// Height and width of the images.
    pub size: (usize, usize),
}

/// A file of samples that is being written. Without [`SampleWriter::finish`] nothing is left of
/// it.
pub struct SampleWriter {
    path: PathBuf,
    sizes: SampleSizes,
    parts: Vec<Part>,
    /// Images so far.
    done: usize,
}

/// One array, in a file without a name that vanishes with the process.
struct Part {
    space: Space,
    file: File,
    /// Known once the first images are there.
    row_len: usize,
}

impl SampleWriter {
    /// Begins a file. Its folder is created where there is none; it takes twice the space of the
    /// file.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn create(path: &Path, sizes: SampleSizes) -> Result<Self, SamplesError> {
        let fail = |source| SamplesError::Write { path: path.to_owned(), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).map_err(fail)?;
        let part = |space| {
            let file = tempfile::tempfile_in(folder).map_err(fail)?;
            Ok(Part { space, file, row_len: 0 })
        };
        let parts = Space::ALL.into_iter().map(part).collect::<Result<_, SamplesError>>()?;
        Ok(Self { path: path.to_owned(), sizes, parts, done: 0 })
    }

    /// Adds the next `n_images` images: the first rows of one sample for each timestep.
    ///
    /// # Errors
    /// Samples of other sizes, or a disk that is full.
    pub fn add(&mut self, samples: &[Sample], n_images: usize) -> Result<(), SamplesError> {
        let SampleSizes { n_timesteps, n_images: n_all, repeats, size } = self.sizes;
        if self.done + n_images > n_all {
            let (path, got) = (self.path.clone(), self.done + n_images);
            return Err(SamplesError::Unfinished { path, expected: n_all, got });
        }
        let n_rows = n_images * repeats;
        for part in &mut self.parts {
            let name = array(part.space);
            let wrong = |expected: String, got| {
                let path = self.path.clone();
                SamplesError::Shape { path, array: name, expected, got }
            };
            if samples.len() != n_timesteps {
                let expected = format!("samples of {n_timesteps} timesteps");
                return Err(wrong(expected, vec![samples.len()]));
            }
            for (timestep, sample) in samples.iter().enumerate() {
                let values = sample.space(part.space);
                // A group may have been filled up: its rows are counted off the pixels.
                let in_sample = sample.images.len() / (3 * size.0 * size.1).max(1);
                let row_len = values.len() / in_sample.max(1);
                if part.row_len == 0 {
                    part.row_len = row_len;
                }
                let is_whole = row_len * in_sample == values.len() && in_sample >= n_rows;
                if row_len != part.row_len || row_len == 0 || !is_whole {
                    let expected = format!("{n_rows} rows of {} values", part.row_len);
                    return Err(wrong(expected, vec![in_sample, values.len()]));
                }
                let row = timestep * n_all * repeats + self.done * repeats;
                let values = &values[..n_rows * row_len];
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let offset = 4 * row as u64 * row_len as u64;
                part.file
                    .write_all_at(&bytes, offset)
                    .map_err(|source| SamplesError::Write { path: self.path.clone(), source })?;
            }
        }
        self.done += n_images;
        Ok(())
    }

    /// Puts the file in its place, whole, with a comment of what it was made with.
    ///
    /// # Errors
    /// Fewer images than there were to be, or a disk that is full.
    pub fn finish(self, comment: &str) -> Result<(), SamplesError> {
        let SampleSizes { n_timesteps, n_images, repeats, size } = self.sizes;
        if self.done != n_images || n_images == 0 {
            let (expected, got) = (n_images.max(1), self.done);
            return Err(SamplesError::Unfinished { path: self.path, expected, got });
        }
        let mut npz = NpzWriter::create(&self.path)?;
        for mut part in self.parts {
            let mut shape = vec![n_timesteps, n_images * repeats];
            match part.space {
                Space::Image => shape.extend([3, size.0, size.1]),
                Space::Feature | Space::Logit => shape.push(part.row_len),
            }
            // It was written at given places, so that it is still at its beginning.
            npz.array_from(array(part.space), Dtype::F32, &shape, &mut part.file)?;
        }
        npz.comment(comment)?;
        Ok(npz.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use oodbench_nn::npz::Npz;

    use super::*;
    use crate::denoise::process::Outputs;
    use crate::denoise::samples::SampleFile;
    use crate::denoise::{Change, Mode, Readout, changes};

    const SIZES: SampleSizes =
        SampleSizes { n_timesteps: 3, n_images: 5, repeats: 2, size: (2, 2) };

    /// Values that no two rows share, `n_rows` of them, from row `first` of a timestep.
    fn sample(timestep: usize, first: usize, n_rows: usize) -> Sample {
        let values = |row_len: usize, scale: f32| -> Vec<f32> {
            let value = |row: usize, i: usize| {
                let seed = (timestep * 1000 + row * 37 + i * 101) as f32;
                (scale * (seed.sin() + 1.5)).abs()
            };
            (first..first + n_rows)
                .flat_map(|row| (0..row_len).map(move |i| value(row, i)))
                .collect()
        };
        Sample {
            images: values(12, 0.3),
            outputs: Outputs { features: values(4, 2.0), logits: values(3, 5.0) },
        }
    }

    fn samples(first: usize, n_rows: usize) -> Vec<Sample> {
        (0..3).map(|timestep| sample(timestep, first, n_rows)).collect()
    }

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("new").join("a_b_r2.npz");
        let mut writer = SampleWriter::create(&path, SIZES).unwrap();
        // Two groups of two images, and one that was filled up.
        for first in [0, 2, 4] {
            writer.add(&samples(2 * first, 4), (5 - first).min(2)).unwrap();
        }
        writer.finish("made so").unwrap();
        path
    }

    #[test]
    fn groups_lie_where_the_layout_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let mut npz = Npz::open(&path).unwrap();
        assert_eq!(npz.names(), ["imgr", "feature", "logit"]);
        assert_eq!(npz.comment(), "made so");
        let whole = samples(0, 10);
        for (name, space, shape) in [
            ("imgr", Space::Image, vec![3, 10, 3, 2, 2]),
            ("feature", Space::Feature, vec![3, 10, 4]),
            ("logit", Space::Logit, vec![3, 10, 3]),
        ] {
            let array = npz.read(name).unwrap();
            assert_eq!(array.shape, shape);
            let expected: Vec<f32> =
                whole.iter().flat_map(|sample| sample.space(space).to_vec()).collect();
            assert_eq!(array.to_f32(), expected, "{name}");
        }
        let files: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn changes_are_read_off_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = SampleFile::open(&written(folder.path()), 2).unwrap();
        assert_eq!((file.n_timesteps(), file.n_images(), file.comment()), (3, 5, "made so"));
        let whole = samples(0, 10);
        for Readout { space, change } in Readout::all(3) {
            let [before, after] = change.pair().map(|i| whole[i].space(space));
            let expected = changes(before, after, 5, 2).unwrap();
            // In one part, and in many.
            for part_bytes in [1 << 20, 1] {
                let got = file.scores_in_parts(space, &[change], part_bytes).unwrap();
                assert_eq!(got.concat(), expected, "{space:?} {change:?}");
            }
        }
        let change = Change { mode: Mode::Local, nth: 3 };
        assert!(file.scores(Space::Logit, &[change]).is_err());
    }

    #[test]
    fn other_repeats_than_the_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let err = SampleFile::open(&path, 4).and_then(|mut file| {
            file.scores(Space::Logit, &[Change { mode: Mode::Local, nth: 1 }])
        });
        let text = err.unwrap_err().to_string();
        assert!(text.contains("4 repeats of each image"), "{text}");
    }

    #[test]
    fn samples_of_other_sizes_and_unfinished_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut writer = SampleWriter::create(&path, SIZES).unwrap();
        assert!(writer.add(&samples(0, 4)[..2], 2).is_err());
        writer.add(&samples(0, 4), 2).unwrap();
        assert!(writer.add(&samples(4, 2), 2).is_err());
        let mut other = samples(4, 4);
        other[1].outputs.logits.pop();
        assert!(writer.add(&other, 2).is_err());
        assert!(writer.add(&samples(4, 8), 4).is_err());
        let text = writer.finish("").unwrap_err().to_string();
        assert!(text.ends_with("expected 5 images, got 2"), "{text}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
