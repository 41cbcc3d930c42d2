//! GROOD: nearest neighbours among gradients of an out-of-distribution prototype.
//!
//! ElAraby et al., "GROOD: GRadient-aware Out-Of-Distribution Detection",
//! 2025. Prototypes are the mean features of each class and one more, `o`, of out-of-distribution
//! images. An image with features `h` has the probability `p` of that prototype under the softmax
//! of its negated distances to all of them, and the gradient of its cross-entropy with respect to
//! `o`, whatever its class, is `g = p (h - o) / |h - o|`. Score: the squared Euclidean distance of
//! `g` to its `K`-th nearest among the gradients of the training images.
//!
//! The paper makes `o` of mixtures of training images; as OpenOOD's default, it is the mean of
//! out-of-distribution *validation* images here, so that this detector has seen such images where
//! most have not. All of them count unless `n_ood` says otherwise; OpenOOD ends with the batch in
//! which 100 are reached. Class means are of all training images by their labels, but the gradients
//! kept are those of images that the classifier gets right, as in OpenOOD; where it gets none right
//! all are kept, with a warning. A class without training images has no prototype; OpenOOD gives it
//! the origin.
//!
//! OpenOOD goes image by image through autograd, and its search is approximate: an inverted file of
//! which 4 cells are looked into, without the batch that the file was trained by. Here gradients
//! are in closed form and the search is exact. The setting `k` of the reference has no effect
//! there; a gradient at `h = o` is 0.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::mean;
use crate::numeric::neighbours::Bank;
use crate::numeric::reduce::argmax;
use crate::numeric::state;
use crate::numeric::wide::{sum_of_pairs, vectorised};

/// Parameters of [`Grood`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    #[serde(rename = "K")]
    k: usize,
    n_ood: Option<usize>,
}

impl Default for Params {
    fn default() -> Self {
        Self { k: 1, n_ood: None }
    }
}

/// Nearest neighbours among gradients.
pub struct Grood {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

struct Fitted {
    prototypes: Prototypes,
    /// Gradients of training images.
    bank: Bank,
}

/// Mean features of classes and of out-of-distribution images.
#[derive(Clone, Debug)]
pub struct Prototypes {
    /// One for each class that has images.
    classes: Vec<Vec<f64>>,
    ood: Vec<f64>,
}

impl Prototypes {
    /// The means of each class's rows, and of `ood`.
    ///
    /// # Errors
    /// No images on either side, features that are not finite, a label that is no class.
    pub fn new(
        features: Matrix<'_>,
        labels: &[i64],
        n_classes: usize,
        ood: Matrix<'_>,
    ) -> Result<Self> {
        let features = check::fit_features(features, "training")?;
        let ood = check::fit_features(ood, "out-of-distribution validation")?;
        let labels = check::classes(labels, n_classes)?;
        let mut sums = vec![vec![0.0; features.n_cols()]; n_classes];
        let mut counts = vec![0usize; n_classes];
        for (h, &class) in features.rows().zip(&labels) {
            counts[class] += 1;
            for (sum, &h) in sums[class].iter_mut().zip(h) {
                *sum += f64::from(h);
            }
        }
        let mut classes = Vec::new();
        for (mut sum, count) in sums.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            sum.iter_mut().for_each(|sum| *sum /= count as f64);
            classes.push(sum);
        }
        Ok(Self { classes, ood: mean(ood) })
    }

    /// Gradients with respect to the out-of-distribution prototype, `[n, n_features]`.
    ///
    /// # Errors
    /// Features of another size or that are not finite.
    pub fn gradients(&self, features: Matrix<'_>) -> Result<Vec<f32>> {
        let features = check::features(features, self.ood.len())?;
        let mut out = vec![0.0; features.values().len()];
        out.par_chunks_mut(self.ood.len().max(1)).enumerate().for_each(|(i, out)| {
            self.gradient(features.row(i), out);
        });
        Ok(out)
    }

    fn gradient(&self, h: &[f32], out: &mut [f32]) {
        let distance = |prototype: &Vec<f64>| {
            let square = |h: f32, m: f64| (f64::from(h) - m) * (f64::from(h) - m);
            vectorised(
                #[inline(always)]
                || sum_of_pairs(h, prototype, square),
            )
            .sqrt()
        };
        let of_ood = distance(&self.ood);
        if of_ood == 0.0 {
            return out.fill(0.0);
        }
        // `1 / p`; a class that is nearer by far makes it infinite, and the gradient 0.
        let others = self.classes.iter().map(|class| (of_ood - distance(class)).exp());
        let scale = 1.0 / ((1.0 + others.sum::<f64>()) * of_ood);
        for ((out, &h), o) in out.iter_mut().zip(h).zip(&self.ood) {
            *out = (scale * (f64::from(h) - o)) as f32;
        }
    }
}

impl Detector for Grood {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "grood",
            title: "GROOD",
            family: "distance",
            summary: "distance to the nearest training image's gradient of an OOD prototype",
            paper: "ElAraby et al., GROOD: GRadient-aware Out-Of-Distribution Detection",
            year: 2025,
            url: "https://arxiv.org/abs/2312.14427",
            needs: Needs::FEATURES
                .and(Needs::LOGITS)
                .and(Needs::LABELS)
                .and(Needs::TRAIN)
                .and(Needs::VAL_OOD),
            params: vec![
                Param::new("K", "which neighbour counts, from 1", "OpenOOD v1.5")
                    .sweep([1, 10, 20, 50, 100])
                    .readout(),
                Param::new(
                    "n_ood",
                    "how many OOD validation images make the prototype, from the first; all if null",
                    "ours; OpenOOD v1.5 takes 100 and the rest of the batch",
                )
                .integer()
                .sweep([10, 100, 1000]),
            ],
            // Prototypes are (1, 0), (-1, 0) and (0, 1). The first image is as far from all of them,
            // so that its gradient is 1/3 (0, -1); those of training images are a (1, -1) and
            // a (-1, -1), where a = 0.1763694 / sqrt(2). The second image is a training image.
            example: Example::of_features(&[&[0.0, 0.0], &[1.0, 0.0]], &[0.059_075_946, 0.0])
                .head(&[&[1.0, 0.0], &[-1.0, 0.0]], &[0.0, 0.0])
                .train(&[&[1.0, 0.0], &[-1.0, 0.0]], &[0, 1])
                .val_ood(&[&[-1.0, 1.0], &[1.0, 1.0]]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if params.k == 0 {
            return Err(Error::parameter("K", "at least 1", params.k));
        }
        if params.n_ood == Some(0) {
            return Err(Error::parameter("n_ood", "at least 1, or null", 0));
        }
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let (train, ood) = (data.train(), data.val_ood()?.features()?);
        let features = check::fit_features(train.features()?, "training")?;
        let logits = check::logits(train.logits()?)?;
        let labels = train.labels()?;
        let n_ood = self.params.n_ood.map_or(ood.n_rows(), |n| n.min(ood.n_rows()));
        let ood = Matrix::new(&ood.values()[..n_ood * ood.n_cols()], n_ood, ood.n_cols())?;
        let prototypes = Prototypes::new(features, labels, data.n_classes(), ood)?;
        let is_right = |&i: &usize| argmax(logits.row(i)) as i64 == labels[i];
        let mut kept: Vec<usize> = (0..train.len()).filter(is_right).collect();
        if kept.is_empty() {
            self.host.warn("no training image is classified correctly, so all of them count");
            kept = (0..train.len()).collect();
        }
        let bank = Bank::new(kept.len(), features.n_cols(), |i, row| {
            prototypes.gradient(features.row(kept[i]), row);
        });
        self.fitted = Some(Fitted { prototypes, bank });
        Ok(())
    }

    fn check_readout(&self, params: &Params) -> Result<()> {
        let n_bank = self.fitted.as_ref().map_or(0, |fitted| fitted.bank.n_rows());
        if params.k > n_bank {
            let expected = format!("at most {n_bank}, the number of training gradients");
            return Err(Error::parameter("K", &expected, params.k));
        }
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
        let Fitted { prototypes, bank } = state::fitted(self.fitted.as_ref())?;
        let features = batch.features()?;
        let gradients = prototypes.gradients(features)?;
        let queries = Matrix::new(&gradients, features.n_rows(), features.n_cols())?;
        let ks: Vec<usize> = variants.iter().map(|params| params.k).collect();
        scores.copy_from_slice(&bank.kth_distances(queries, &ks));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prototypes() -> Prototypes {
        let features = [0.0, 0.0, 0.0, 2.0, 4.0, 0.0];
        let features = Matrix::new(&features, 3, 2).unwrap();
        Prototypes::new(features, &[0, 0, 2], 3, Matrix::new(&[3.0, 3.0], 1, 2).unwrap()).unwrap()
    }

    #[test]
    fn a_class_without_images_has_no_prototype() {
        let Prototypes { classes, ood } = prototypes();
        assert_eq!(classes, [[0.0, 1.0], [4.0, 0.0]]);
        assert_eq!(ood, [3.0, 3.0]);
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let prototypes = prototypes();
        let h = [1.5f32, -0.25];
        // The cross-entropy with the first class, whichever is taken.
        let loss = |ood: &[f64]| -> f64 {
            let score = |prototype: &[f64]| -> f64 {
                let squares = h.iter().zip(prototype).map(|(&h, m)| (f64::from(h) - m).powi(2));
                -squares.sum::<f64>().sqrt()
            };
            let of_classes: f64 = prototypes.classes.iter().map(|class| score(class).exp()).sum();
            (of_classes + score(ood).exp()).ln() - score(&prototypes.classes[0])
        };
        let got = prototypes.gradients(Matrix::new(&h, 1, 2).unwrap()).unwrap();
        for (d, got) in got.iter().enumerate() {
            let (mut up, mut down) = (prototypes.ood.clone(), prototypes.ood.clone());
            up[d] += 1e-5;
            down[d] -= 1e-5;
            let expected = (loss(&up) - loss(&down)) / 2e-5;
            assert!((f64::from(*got) - expected).abs() < 1e-7, "{d}: {got} {expected}");
        }
    }

    #[test]
    fn gradients_of_images_near_or_far_are_finite() {
        let prototypes = prototypes();
        let features = [3.0, 3.0, 1e30, -1e30, 0.0, 1.0];
        let got = prototypes.gradients(Matrix::new(&features, 3, 2).unwrap()).unwrap();
        assert_eq!(got[..2], [0.0, 0.0]);
        assert!(got.iter().all(|x| x.is_finite()), "{got:?}");
    }
}
