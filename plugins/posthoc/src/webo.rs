//! WEBO: free energy of the logits with a weight for each class, of VOS.
//!
//! Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", 2022, as
//! pytorch-ood's `WeightedEBO`. Score: `-log sum_c max(w_c, 0) e^(l_c)` for logits `l` and the
//! weights `w` of the layer that VOS trains beside the classifier; with equal weights it orders
//! images as [`crate::ebo`] does.
//!
//! The weights come as `values` or in a text file, numbers apart by spaces, commas or lines:
//! `numpy.savetxt("weights.txt", layer.weight.detach().cpu())`. pytorch-ood takes the exponential of
//! the logits as they are, which overflows above 88; here nothing does. Weights of which none is
//! positive have no score: infinity there, an error here.

use oodbench_sdk::prelude::*;

use crate::numeric::check;

/// Parameters of [`Webo`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    weights: Option<String>,
    values: Vec<f64>,
}

/// Weighted free energy.
pub struct Webo {
    params: Params,
    host: Host,
    /// Logarithms of the weights; minus infinity for one that is not positive.
    log_weights: Vec<f64>,
}

/// Numbers of a text, apart by white space, commas and brackets.
fn numbers(text: &str) -> Result<Vec<f64>> {
    let parts = text.split(|c: char| c.is_whitespace() || ",;[]".contains(c));
    let number = |part: &str| {
        part.parse().map_err(|_| Error::input(format!("weights expected numbers, got `{part}`")))
    };
    parts.filter(|part| !part.is_empty()).map(number).collect()
}

/// The logarithm of each weight.
fn logarithms(weights: &[f64]) -> Result<Vec<f64>> {
    if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
        return Err(Error::input(format!("weights expected finite numbers, got {weight}")));
    }
    if !weights.iter().any(|&weight| weight > 0.0) {
        let n = weights.len();
        return Err(Error::input(format!("weights expected a positive one, got none of {n}")));
    }
    Ok(weights.iter().map(|weight| weight.max(0.0).ln()).collect())
}

/// The free energy of logits with weights of these logarithms.
fn energy(logits: &[f32], log_weights: &[f64]) -> f32 {
    let terms = || logits.iter().zip(log_weights).map(|(&logit, log)| f64::from(logit) + log);
    let greatest = terms().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms().map(|term| (term - greatest).exp()).sum();
    -(greatest + sum.ln()) as f32
}

impl Webo {
    fn read(&self) -> Result<Vec<f64>> {
        if !self.params.values.is_empty() {
            return Ok(self.params.values.clone());
        }
        let path = self.host.asset("weights")?;
        let text = std::fs::read_to_string(&path)
            .map_err(|err| Error::input(format!("read `{}`: {err}", path.display())))?;
        numbers(&text).map_err(|err| Error::input(format!("read `{}`: {err}", path.display())))
    }
}

impl Detector for Webo {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "webo",
            title: "Weighted free energy",
            family: "logits",
            summary: "free energy of the logits with a weight for each class",
            paper: "Du et al., VOS: Learning What You Don't Know by Virtual Outlier Synthesis",
            year: 2022,
            url: "https://arxiv.org/abs/2202.01197",
            needs: Needs::LOGITS.and(Needs::ASSETS),
            params: vec![
                Param::new("weights", "text file with a weight for each class", "VOS trains them")
                    .asset(),
                Param::new("values", "the weights themselves, in place of a file", "-"),
            ],
            companion_of: "VOS",
            // -ln(1/2 + 2) and -ln(1/2 2 + 2); the third class does not count.
            example: Example::of_logits(
                &[&[0.0, 0.0, 0.0], &[std::f32::consts::LN_2, 0.0, 9.0]],
                &[-0.916_290_7, -1.098_612_3],
            )
            .param("values", vec![0.5, 2.0, -1.0]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if params.weights.is_some() && !params.values.is_empty() {
            let got = params.values.len();
            return Err(Error::parameter("values", "nothing beside a file of weights", got));
        }
        if !params.values.is_empty() {
            logarithms(&params.values)?;
        }
        Ok(Self { params, host, log_weights: Vec::new() })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let weights = self.read()?;
        if weights.len() != data.n_classes() {
            let (expected, got) = (data.n_classes(), weights.len());
            return Err(Error::input(format!(
                "weights expected one for each of {expected} classes, got {got}"
            )));
        }
        self.log_weights = logarithms(&weights)?;
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if self.log_weights.is_empty() {
            return Err(Error::new("`score` was called before `fit`"));
        }
        let logits = check::logits_of(batch.logits()?, self.log_weights.len())?;
        for (score, logits) in scores.iter_mut().zip(logits.rows()) {
            *score = energy(logits, &self.log_weights);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_as_numpy_writes_them() {
        assert_eq!(numbers("5.0e-01 -1.0e+00\n2\n").unwrap(), [0.5, -1.0, 2.0]);
        assert_eq!(numbers("[[0.5, 2]]").unwrap(), [0.5, 2.0]);
        let message = numbers("0.5 two").unwrap_err().to_string();
        assert_eq!(message, "weights expected numbers, got `two`");
    }

    #[test]
    fn great_logits_do_not_overflow() {
        let log_weights = logarithms(&[1.0, 0.0, -3.0]).unwrap();
        assert_eq!(energy(&[1e4, 2e4, 3e4], &log_weights), -1e4);
    }

    #[test]
    fn weights_without_a_positive_one_are_refused() {
        let message = logarithms(&[0.0, -1.0]).unwrap_err().to_string();
        assert_eq!(message, "weights expected a positive one, got none of 2");
        assert!(logarithms(&[]).is_err());
        assert!(logarithms(&[1.0, f64::NAN]).is_err());
    }
}
