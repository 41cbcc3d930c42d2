//! WDiscOOD: distances within and outside of the space that tells classes apart.
//!
//! Chen et al., "WDiscOOD: Out-of-Distribution Detection via Whitened Linear Discriminant Analysis",
//! 2023. Features `h` are whitened, `z = S^(-1/2) h` with the covariance `S` that all classes share,
//! and the `discriminants` directions in which the means `m_c` of the classes' whitened features
//! vary most about the mean `m` of all are split off, `D`. Score:
//! `min_c |D' (z - m_c)| + residual_weight |(I - D D') (z - m)|`: the distance to the nearest class
//! where classes differ, and that to the middle where they do not.
//!
//! The authors' code has two settings: features as they are with a weight of 5 and as many
//! directions as classes (ResNet-50), and features scaled to length 1 with a weight of 1 and 512
//! directions (ViT; scaled too for contrastive training). Defaults are the second but for the
//! directions, which are by default all in which the class means vary, one fewer than classes: a
//! further one, as in the first, is arbitrary. It adds 1e-5 to the diagonal of what is inverted,
//! which changes no direction after whitening. OpenOOD lacks it. A class without training images is
//! an error.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::{eigen, whitening};
use crate::numeric::moments::{
    Changed, Whitened, class_means, mean, rounding_noise, scatter, single, subtract, unchanged,
    unit,
};
use crate::numeric::state;

/// Parameters of [`WDiscOod`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    normalise: bool,
    discriminants: Option<usize>,
    residual_weight: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { normalise: true, discriminants: None, residual_weight: 1.0 }
    }
}

/// Whitened linear discriminant analysis.
pub struct WDiscOod {
    params: Params,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// The classes, where they differ.
    discriminative: Whitened,
    /// The mean of all, where they do not.
    residual: Whitened,
}

fn prepared(normalise: bool) -> impl Fn(usize, &[f32], &mut [f64]) + Sync {
    move |_, row, z| if normalise { unit(row, z) } else { unchanged(row, z) }
}

impl Fitted {
    fn new(
        features: Matrix<'_>,
        classes: &[usize],
        n_classes: usize,
        params: &Params,
    ) -> Result<Self> {
        let prepare = prepared(params.normalise);
        let all = Changed { rows: features, change: &prepare };
        let means = class_means(&all, n_classes, classes)?;
        let centred = |i: usize, row: &[f32], z: &mut [f64]| {
            prepare(i, row, z);
            subtract(z, &means[classes[i]]);
        };
        let within = scatter(&Changed { rows: features, change: centred });
        let mean = mean(&all);
        let noise = rounding_noise(features.n_rows(), &mean);
        let root = whitening(within.as_ref(), noise)?;
        let (d, rank) = (root.nrows(), root.ncols());
        // The class means about the mean of all, whitened, and how they vary. Whitening by another
        // root than the symmetric one turns the space, which changes no distance.
        let whitened = faer::Mat::from_fn(n_classes, rank, |class, j| {
            (0..d).map(|i| (means[class][i] - mean[i]) * root[(i, j)]).sum::<f64>()
        });
        let (variances, vectors) = eigen((whitened.transpose() * &whitened).as_ref())?;
        let greatest = variances.last().copied().unwrap_or(0.0);
        let varies = |variance: &&f64| **variance > 1e-10 * greatest;
        let n_varying = variances.iter().filter(varies).count().min(n_classes.saturating_sub(1));
        let split_off = params.discriminants.unwrap_or(n_varying).min(rank);
        // Variances ascend, so the discriminants come last.
        let turned = &root * &vectors;
        let (residual, discriminative) = turned.as_ref().split_at_col(rank - split_off);
        Ok(Self {
            discriminative: Whitened::new(mean.clone(), discriminative, &means),
            residual: Whitened::new(mean.clone(), residual, &[mean]),
        })
    }

    /// The distances within and outside of the discriminative space.
    fn distances(&self, features: Matrix<'_>, normalise: bool) -> Vec<(f64, f64)> {
        let prepared = Changed { rows: features, change: prepared(normalise) };
        let within = self.discriminative.nearest(&prepared);
        let outside = self.residual.nearest(&prepared);
        within.into_iter().zip(outside).map(|(x, y)| (x.sqrt(), y.sqrt())).collect()
    }
}

impl Detector for WDiscOod {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "wdiscood",
            title: "WDiscOOD",
            family: "distance",
            summary: "distance to the nearest class mean where classes differ, and to the mean of all elsewhere",
            paper: "Chen et al., WDiscOOD: Out-of-Distribution Detection via Whitened Linear Discriminant Analysis",
            year: 2023,
            url: "https://arxiv.org/abs/2303.07543",
            needs: Needs::FEATURES.and(Needs::LABELS).and(Needs::TRAIN),
            params: vec![
                Param::new("normalise", "scale features to length 1", "the authors' code for ViT")
                    .sweep([true, false]),
                Param::new(
                    "discriminants",
                    "directions that tell classes apart; by default all in which class means vary",
                    "the authors' code for ResNet-50, less the arbitrary one",
                )
                .integer(),
                Param::new(
                    "residual_weight",
                    "how much the distance elsewhere counts",
                    "the authors' code for ViT",
                )
                .number()
                .sweep([0.5, 1.0, 2.0, 5.0])
                .readout(),
            ],
            // Within classes the covariance is half the identity, so whitening stretches by the
            // root of 2; the classes, at (1, 0) and (7, 0), differ along the first axis.
            example: Example::of_features(
                &[&[1.0, 0.0], &[10.0, 1.0], &[4.0, 0.0]],
                &[0.0, 11.313_708, 4.242_641],
            )
            .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
            .train(
                &[
                    &[2.0, 0.0],
                    &[0.0, 0.0],
                    &[1.0, 1.0],
                    &[1.0, -1.0],
                    &[8.0, 0.0],
                    &[6.0, 0.0],
                    &[7.0, 1.0],
                    &[7.0, -1.0],
                ],
                &[0, 0, 0, 0, 1, 1, 1, 1],
            )
            .param("normalise", false)
            .param("residual_weight", 5.0),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if !(params.residual_weight >= 0.0 && params.residual_weight.is_finite()) {
            let got = params.residual_weight;
            return Err(Error::parameter("residual_weight", "a number from 0", got));
        }
        Ok(Self { params, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let (train, n_classes) = (data.train(), data.n_classes());
        let features = check::fit_features(train.features()?, "training")?;
        if let Some(n) = self.params.discriminants.filter(|n| *n > features.n_cols()) {
            let expected = format!("at most {}, the number of features", features.n_cols());
            return Err(Error::parameter("discriminants", &expected, n));
        }
        let classes = check::classes(train.labels()?, n_classes)?;
        self.fitted = Some(Fitted::new(features, &classes, n_classes, &self.params)?);
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
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.residual.n_cols())?;
        let distances = fitted.distances(features, self.params.normalise);
        let of_variants = variants.iter().flat_map(|params| {
            distances.iter().map(|(within, outside)| within + params.residual_weight * outside)
        });
        for (score, value) in scores.iter_mut().zip(of_variants) {
            *score = single(value);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = |fitted: &Fitted| {
            let Fitted { discriminative, residual } = fitted;
            discriminative.is_whole()
                && residual.is_whole()
                && discriminative.n_cols() == residual.n_cols()
        };
        self.fitted = state::load(bytes)?.filter(whole);
        state::fitted(self.fitted.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{N_CLASSES, Rows, assert_scores};

    /// Expected scores: the authors' formula in numpy, with the symmetric root and the eigenvectors
    /// of the product that they invert, from the same data.
    #[test]
    fn scores_are_those_of_the_authors_formula() {
        let scores = |normalise, residual_weight| -> Vec<f32> {
            let (train, test) = (Rows::train(), Rows::test());
            let params = Params { normalise, residual_weight, ..Params::default() };
            let fitted =
                Fitted::new(train.features(), &train.classes(), N_CLASSES, &params).unwrap();
            let distances = fitted.distances(test.features(), normalise).into_iter();
            distances.map(|(x, y)| single(x + residual_weight * y)).collect()
        };
        assert_scores(
            &scores(true, 1.0),
            &[3.289162322, 3.937320468, 4.30762346, 2.930985283, 3.767922921, 4.421357843],
        );
        assert_scores(
            &scores(false, 5.0),
            &[12.51540666, 13.34810095, 11.63179035, 14.53676633, 17.44214181, 13.05624122],
        );
    }
}
