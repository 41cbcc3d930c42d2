//! CoP: what principal components leave of a feature, for the cosine kernel.
//!
//! Fang et al., "Kernel PCA for Out-of-Distribution Detection", 2024. Score:
//! `|(I - U U') (z - m)|` for features scaled to length 1, `z = h / |h|`, the mean `m` of the scaled
//! training features, and the fewest of their principal components `U` that explain the part
//! `explained` of their variance. PCA on features as they are fails because lengths vary; scaling is
//! the explicit map of the cosine kernel. [`crate::corp`] maps into more dimensions.
//!
//! As in the authors' code, one direction at least is left out, whatever the part. Where a network
//! has gathered its classes in few directions, the default part may leave out some that tell them
//! apart, which costs much: search over it. OpenOOD lacks it.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::{Changed, Principal, Source, moments, single, subtract, unit, units};
use crate::numeric::state;

/// Parameters of [`Cop`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    explained: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { explained: 0.85 }
    }
}

/// Kernel PCA with the cosine kernel.
pub struct Cop {
    params: Params,
    subspace: Option<Subspace>,
}

/// The training features' mean and principal components, after a map.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub(crate) struct Subspace {
    pub(crate) mean: Vec<f64>,
    principal: Principal,
}

impl Subspace {
    /// Of mapped rows.
    pub(crate) fn new(mapped: &impl Source) -> Result<Self> {
        let (mean, covariance) = moments(mapped);
        Ok(Self { mean, principal: Principal::of(covariance.as_ref())? })
    }

    /// Whether a saved one is whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.principal.fits(self.mean.len())
    }

    /// What the components leave of each of the rows, which are mapped and centred, for each part
    /// of the variance that is explained, `[part, row]`.
    pub(crate) fn errors(&self, centred: &impl Source, parts: &[f64], scores: &mut [f32]) {
        let most = self.mean.len().saturating_sub(1);
        let dim = |&part: &f64| self.principal.explaining(part).min(most);
        let dims: Vec<usize> = parts.iter().map(dim).collect();
        let energies = self.principal.energies(centred, &dims);
        for (i, row) in energies.chunks_exact(1 + dims.len()).enumerate() {
            for (nth, along) in row[1..].iter().enumerate() {
                let error = (row[0] - along).max(0.0).sqrt();
                scores[nth * centred.n_rows() + i] = single(error);
            }
        }
    }
}

/// A part of the variance, or why it is none.
///
/// # Errors
/// A number that is not above 0 and at most 1.
pub(crate) fn check_part(explained: f64) -> Result<()> {
    if explained > 0.0 && explained <= 1.0 {
        return Ok(());
    }
    Err(Error::parameter("explained", "above 0, at most 1", explained))
}

impl Subspace {
    fn of_units(features: Matrix<'_>) -> Result<Self> {
        Self::new(&units(features))
    }

    fn errors_of_units(&self, features: Matrix<'_>, parts: &[f64], scores: &mut [f32]) {
        let change = |_, row: &[f32], z: &mut [f64]| {
            unit(row, z);
            subtract(z, &self.mean);
        };
        self.errors(&Changed { rows: features, change }, parts, scores);
    }
}

impl Detector for Cop {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "cop",
            title: "CoP",
            family: "features",
            summary: "what the principal components of features of length 1 leave of the feature",
            paper: "Fang et al., Kernel PCA for Out-of-Distribution Detection",
            year: 2024,
            url: "https://arxiv.org/abs/2402.02949",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "explained",
                    "part of the variance that the components explain",
                    "the authors' code for CIFAR-10",
                )
                .sweep([0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99])
                .readout(),
            ],
            // Scaled, the training features vary by 1/2 along the first axis and by 1/4 along the
            // second about their mean (0, 0.5), so that what counts is the distance along the latter.
            example: Example::of_features(
                &[&[5.0, 0.0], &[0.0, -2.0], &[3.0, 4.0]],
                &[0.5, 1.5, 0.3],
            )
            .train(&[&[2.0, 0.0], &[-3.0, 0.0], &[0.0, 1.0], &[0.0, 4.0]], &[0, 0, 1, 1])
            .param("explained", 0.6),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        check_part(params.explained)?;
        Ok(Self { params, subspace: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        self.subspace = Some(Subspace::of_units(features)?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let subspace = state::fitted(self.subspace.as_ref())?;
        let features = check::features(batch.features()?, subspace.mean.len())?;
        let parts: Vec<f64> = variants.iter().map(|params| params.explained).collect();
        subspace.errors_of_units(features, &parts, scores);
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.subspace.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.subspace = state::load(bytes)?.filter(Subspace::is_whole);
        state::fitted(self.subspace.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{Rows, assert_scores};

    /// Expected scores: the authors' formula, components by numpy's `svd`, from the same data.
    #[test]
    fn scores_are_those_of_the_authors_formula() {
        let subspace = Subspace::of_units(Rows::train().features()).unwrap();
        let mut got = [0.0; 18];
        subspace.errors_of_units(Rows::test().features(), &[0.85, 0.6, 1.0], &mut got);
        assert_scores(
            &got[..6],
            &[0.1696220719, 0.2094312111, 0.1360712129, 0.3416948604, 0.2672681325, 0.3481390331],
        );
        assert_scores(
            &got[6..12],
            &[0.2295270381, 0.3223126493, 0.2553235222, 0.3485572701, 0.2949056288, 0.3481506781],
        );
        assert_scores(
            &got[12..],
            &[
                0.03272426533,
                0.07335481949,
                0.043280012,
                0.03375820755,
                0.05453960957,
                0.09082521968,
            ],
        );
    }
}
