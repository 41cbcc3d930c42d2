//! Reading changes off a file of samples, ours or the reference's.

use std::path::{Path, PathBuf};

use oodbench_nn::npz::{Npz, Stored};

use super::{SamplesError, array};
use crate::denoise::DenoiseError;
use crate::denoise::change::{Change, Space, changes};

/// What is held in memory of each timestep.
const PART_BYTES: usize = 1 << 22;

/// A file of samples.
pub struct SampleFile {
    path: PathBuf,
    npz: Npz,
    comment: String,
    repeats: usize,
    n_timesteps: usize,
    n_rows: usize,
}

impl SampleFile {
    /// Opens a file whose images were taken `repeats` times each. No numbers are read.
    ///
    /// # Errors
    /// No such archive; arrays whose shapes do not go together, or are no multiple of `repeats`.
    pub fn open(path: &Path, repeats: usize) -> Result<Self, SamplesError> {
        let mut npz = Npz::open(path)?;
        let mut sizes = None;
        for space in Space::ALL {
            // A file of one space is of use too.
            if !npz.names().iter().any(|name| name == array(space)) {
                continue;
            }
            let shape = npz.shape(array(space))?;
            let wrong = |expected: String| SamplesError::Shape {
                path: path.to_owned(),
                array: array(space),
                expected,
                got: shape.clone(),
            };
            let [n_timesteps, n_rows, ref rest @ ..] = shape[..] else {
                return Err(wrong("timesteps and rows first".to_owned()));
            };
            if rest.is_empty() || n_timesteps < 2 || shape.contains(&0) {
                return Err(wrong("[2 timesteps or more, rows, values of a row …]".to_owned()));
            }
            if repeats == 0 || !n_rows.is_multiple_of(repeats) {
                return Err(wrong(format!("{repeats} repeats of each image")));
            }
            match sizes {
                Some((t, n)) if (t, n) != (n_timesteps, n_rows) => {
                    return Err(wrong(format!("[{t}, {n}, …] as the other arrays")));
                }
                _ => sizes = Some((n_timesteps, n_rows)),
            }
        }
        let Some((n_timesteps, n_rows)) = sizes else {
            return Err(SamplesError::Empty { path: path.to_owned() });
        };
        let comment = npz.comment();
        Ok(Self { path: path.to_owned(), npz, comment, repeats, n_timesteps, n_rows })
    }

    pub fn n_timesteps(&self) -> usize {
        self.n_timesteps
    }

    pub fn n_images(&self) -> usize {
        self.n_rows / self.repeats
    }

    /// Values of a row of a space.
    ///
    /// # Errors
    /// A space that is not there.
    pub fn row_len(&mut self, space: Space) -> Result<usize, SamplesError> {
        Ok(self.npz.shape(array(space))?.iter().skip(2).product())
    }

    /// What the file was made with; empty in the reference's.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// The scores of every image, one list for each change.
    ///
    /// # Errors
    /// A space that is not there, numbers that are not finite, a change that there is not.
    pub fn scores(
        &mut self,
        space: Space,
        wanted: &[Change],
    ) -> Result<Vec<Vec<f32>>, SamplesError> {
        self.scores_in_parts(space, wanted, PART_BYTES)
    }

    pub(super) fn scores_in_parts(
        &mut self,
        space: Space,
        wanted: &[Change],
        part_bytes: usize,
    ) -> Result<Vec<Vec<f32>>, SamplesError> {
        let last = self.n_timesteps - 1;
        if let Some(change) = wanted.iter().find(|c| c.nth == 0 || c.nth > last) {
            return Err(DenoiseError::Change { last, got: change.nth }.into());
        }
        let stored = self.npz.stored(array(space))?;
        let row_len: usize = stored.shape()[2..].iter().product();
        let image_bytes = row_len * self.repeats * size_of::<f64>();
        let at_once = (part_bytes / image_bytes.max(1)).max(1);
        let mut scores = vec![Vec::with_capacity(self.n_images()); wanted.len()];
        for first in (0..self.n_images()).step_by(at_once) {
            let n_images = at_once.min(self.n_images() - first);
            let of_timestep = |timestep| {
                self.rows(&stored, space, timestep, first * self.repeats, n_images * self.repeats)
            };
            let rows: Vec<Vec<f64>> =
                (0..self.n_timesteps).map(of_timestep).collect::<Result<_, _>>()?;
            for (change, scores) in wanted.iter().zip(&mut scores) {
                let [before, after] = change.pair().map(|i| &rows[i]);
                scores.extend(changes(before, after, n_images, self.repeats)?);
            }
        }
        Ok(scores)
    }

    fn rows(
        &self,
        stored: &Stored,
        space: Space,
        timestep: usize,
        first: usize,
        n_rows: usize,
    ) -> Result<Vec<f64>, SamplesError> {
        let row_len: usize = stored.shape()[2..].iter().product();
        let mut values = vec![0.0; n_rows * row_len];
        let place = (timestep * self.n_rows + first) as u64 * row_len as u64;
        stored.read_at(place, &mut values)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(i) => Err(SamplesError::NotFinite {
                path: self.path.clone(),
                array: array(space),
                timestep,
                row: first + i / row_len,
                got: values[i],
            }),
        }
    }
}
