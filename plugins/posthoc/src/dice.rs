//! DICE: directed sparsification.
//!
//! Sun and Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", 2022. A weight
//! of the head contributes its product with the mean of its feature over the training images. Only
//! weights whose contribution is above the `p`-th percentile of all are kept; score: the energy of
//! the logits that they give.
//!
//! OpenOOD makes the mask once, so that a search over `p` there ends with the first value for
//! every other; here each `p` has its own. A contribution that equals the percentile is removed as
//! in OpenOOD, which matters where many are 0: `keep_ties` keeps it. OpenOOD sums an array of
//! images x classes x features; here the masked head is applied as any other.

use oodbench_sdk::prelude::*;

use crate::numeric::head::{EnergyHead, unchanged};
use crate::numeric::linalg::mean;
use crate::numeric::reduce::percentile;
use crate::numeric::{check, state};

/// Parameters of [`Dice`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    p: f64,
    keep_ties: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { p: 90.0, keep_ties: false }
    }
}

/// Directed sparsification.
pub struct Dice {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
    /// The masked head, made when it is first needed.
    head: Option<EnergyHead>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// The mean of each feature.
    means: Vec<f32>,
    threshold: f32,
}

impl Detector for Dice {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "dice",
            title: "DICE",
            family: "shaping",
            summary: "the energy after the head's weights that contribute least are removed",
            paper: "Sun and Li, DICE: Leveraging Sparsification for Out-of-Distribution Detection",
            year: 2022,
            url: "https://arxiv.org/abs/2111.09805",
            needs: Needs::FEATURES.and(Needs::HEAD).and(Needs::TRAIN),
            params: vec![
                Param::new("p", "how many of 100 weights are removed", "OpenOOD v1.5").sweep([90]),
                Param::new(
                    "keep_ties",
                    "keep weights that contribute as much as the percentile",
                    "OpenOOD v1.5",
                ),
            ],
            // Means 1 and 2 make contributions of 1, 6, 2 and 2. Above their median of 2 there is
            // the 6 alone, and the logits are 3 and 1.
            example: Example::of_features(&[&[5.0, 1.0]], &[-3.126_928])
                .head(&[&[1.0, 3.0], &[2.0, 1.0]], &[0.0, 1.0])
                .train(&[&[0.0, 1.0], &[2.0, 3.0]], &[0, 1])
                .param("p", 50.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(0.0..=100.0).contains(&params.p) {
            return Err(Error::parameter("p", "0 to 100", params.p));
        }
        Ok(Self { params, host, fitted: None, head: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let means: Vec<f32> = mean(features).into_iter().map(|mean| mean as f32).collect();
        let head = self.host.head()?;
        check::finite(head.weight(), "weights of the head")?;
        let of_class = |weights| contributions(weights, &means).collect::<Vec<f32>>();
        let all: Vec<f32> = head.weight().rows().flat_map(of_class).collect();
        if all.is_empty() {
            return Err(Error::input("the head has no weights"));
        }
        let threshold = percentile(&all, self.params.p);
        self.fitted = Some(Fitted { means, threshold });
        self.head = None;
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let head = match self.head.take() {
            Some(head) => head,
            None => self.masked_head()?,
        };
        let head = self.head.insert(head);
        let products = head.products(batch.features()?, unchanged)?;
        head.energies(&products, |_| 1.0, scores);
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        self.head = None;
        Ok(())
    }
}

impl Dice {
    fn masked_head(&self) -> Result<EnergyHead> {
        let Fitted { means, threshold } = state::fitted(self.fitted.as_ref())?;
        let head = self.host.head()?;
        if head.weight().n_cols() != means.len() {
            let (expected, got) = (head.weight().n_cols(), means.len());
            return Err(Error::input(format!(
                "the saved state expected {expected} features, got {got}"
            )));
        }
        let keep_ties = self.params.keep_ties;
        let kept = head.weight().rows().flat_map(|weights| {
            contributions(weights, means).map(|c| c > *threshold || (keep_ties && c == *threshold))
        });
        let (kept, n_features): (Vec<bool>, _) = (kept.collect(), means.len());
        EnergyHead::masked(&head, |class, d| kept[class * n_features + d])
    }
}

/// What each weight of a class contributes on average; in `f32`, so that as many are equal as in
/// the reference.
fn contributions<'a>(weights: &'a [f32], means: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    weights.iter().zip(means).map(|(weight, mean)| weight * mean)
}
