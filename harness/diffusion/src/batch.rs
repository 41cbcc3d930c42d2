//! How many images a network takes at once: the largest batch that fits into the memory of a GPU and
//! is of use, and, where one did not fit, a smaller one that does. Both are found by trying.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use oodbench_nn::device::{give_back, is_out_of_memory};
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::denoise::MOST_AT_ONCE;
use crate::guidance::Guided;
use crate::net::EpsModel;

/// Images in one evaluation of a diffusion network where nobody says another number, both branches
/// of a guidance counted.
pub const DEFAULT_BATCH: usize = 64;

/// The share of a GPU's memory that an automatic batch leaves to others: the host's classifier runs
/// on the same one, in a process or a library of its own.
pub const HEADROOM: f64 = 0.1;

/// What doubling a batch must bring, in images per second.
const WORTHWHILE: f64 = 1.05;

/// Evaluations that are timed.
const TIMED: usize = 3;

/// The smallest batch that is tried.
const LEAST: usize = 8;

/// A batch as users give it: a number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// So many images.
    Of(usize),
    /// [`Evaluation::largest`].
    Auto,
}

/// The word for [`Batch::Auto`].
const AUTO: &str = "auto";

const EXPECTED: &str = "a number from 1 to 65536, or `auto`";

impl Batch {
    /// So many images, if they are as many as settings may ask for.
    fn of(n: usize) -> Option<Self> {
        (1..=MOST_AT_ONCE).contains(&n).then_some(Self::Of(n))
    }

    /// Whether it is a number that settings may not ask for.
    pub fn is_out_of_range(self) -> bool {
        matches!(self, Self::Of(n) if Self::of(n).is_none())
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::Of(DEFAULT_BATCH)
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(n) => write!(f, "{n}"),
            Self::Auto => f.write_str(AUTO),
        }
    }
}

impl FromStr for Batch {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = || text.parse().ok().and_then(Self::of);
        let batch = if text == AUTO { Some(Self::Auto) } else { number() };
        batch.ok_or_else(|| format!("expected {EXPECTED}"))
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Of(n) => n.serialize(serializer),
            Self::Auto => AUTO.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Number(i64),
            Word(String),
        }
        match Given::deserialize(deserializer).map_err(|_| D::Error::custom(EXPECTED))? {
            // Whether it is in range, its owner says in his own words.
            Given::Number(n) => usize::try_from(n)
                .map(Self::Of)
                .map_err(|_| D::Error::invalid_value(Unexpected::Signed(n), &EXPECTED)),
            Given::Word(word) if word == AUTO => Ok(Self::Auto),
            Given::Word(word) => Err(D::Error::invalid_value(Unexpected::Str(&word), &EXPECTED)),
        }
    }
}

/// What is evaluated again and again.
pub struct Evaluation<'a> {
    pub model: &'a dyn EpsModel,
    /// The weight of the guidance; unused by an unconditional network.
    pub beta: f64,
    /// Height and width.
    pub size: (usize, usize),
    pub device: &'a Device,
}

/// A batch that was found, in images of one evaluation with both branches of the guidance counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub batch: usize,
    pub limit: Limit,
}

/// Why it is not larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// It is the default; nothing is tried on the CPU.
    Cpu,
    /// Twice as much does not fit, or leaves too little to others.
    Memory,
    /// Twice as much is hardly faster.
    Speed,
    /// There are no more images at once.
    Images,
}

impl Found {
    /// One line: the batch and why it is not larger.
    pub fn line(&self) -> String {
        let why = match self.limit {
            Limit::Cpu => "the default on the CPU",
            Limit::Memory => {
                "twice as much does not fit, a tenth of the GPU's memory left to others"
            }
            Limit::Speed => "twice as much is not 5 % faster",
            Limit::Images => "there are no more images at once",
        };
        format!("batch {}: {why}", self.batch)
    }
}

impl Evaluation<'_> {
    /// How many images of an evaluation one image costs.
    pub fn branches(&self) -> usize {
        if self.model.n_classes() > 0 && self.beta != 0.0 { 2 } else { 1 }
    }

    /// One evaluation of nothing in particular; seconds.
    fn run(&self, batch: usize, times: usize) -> Result<f64> {
        let rows = (batch / self.branches()).max(1);
        let (height, width) = self.size;
        let x = Tensor::zeros((rows, 3, height, width), DType::F32, self.device)?;
        let classes = match self.model.n_classes() {
            0 => None,
            _ => Some(Tensor::zeros(rows, DType::U32, self.device)?),
        };
        let guided = Guided { model: self.model, classes, beta: self.beta };
        self.device.synchronize()?;
        let start = Instant::now();
        for _ in 0..times {
            guided.eps(&x, 1.0)?;
        }
        self.device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The largest half, quarter and so on of a batch that fits, for the hint of an error.
    pub fn fits_below(&self, batch: usize) -> Option<usize> {
        let mut smaller = batch / 2;
        while smaller >= self.branches() {
            // The pieces of what did not fit may be large, and of no use to what is smaller.
            give_back(self.device).ok()?;
            match self.run(smaller, 1) {
                Ok(_) => return Some(smaller),
                Err(error) if is_out_of_memory(&error) => smaller /= 2,
                Err(_) => return None,
            }
        }
        None
    }

    /// The largest power of two that fits, is of use, and is not much more than `most`. On the CPU
    /// it is [`DEFAULT_BATCH`].
    ///
    /// # Errors
    /// A device that does not take the smallest batch, or what the network says.
    pub fn largest(&self, most: usize) -> Result<Found> {
        if self.device.is_cpu() {
            return Ok(Found { batch: DEFAULT_BATCH, limit: Limit::Cpu });
        }
        let most = most.max(LEAST);
        // The first evaluations of a shape make its plans and record it.
        let rate = |batch: usize| -> Result<Option<f64>> {
            let timed = self.run(batch, 2).and_then(|_| self.run(batch, TIMED));
            match timed {
                Ok(seconds) if has_headroom(self.device)? => {
                    Ok(Some((batch * TIMED) as f64 / seconds))
                }
                Ok(_) => Ok(None),
                Err(error) if is_out_of_memory(&error) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let mut batch = LEAST;
        let Some(mut best) = rate(batch)? else {
            let batch = self.fits_below(batch).unwrap_or(1);
            return Ok(Found { batch, limit: Limit::Memory });
        };
        let limit = loop {
            if batch >= most {
                break Limit::Images;
            }
            match rate(2 * batch)? {
                None => break Limit::Memory,
                Some(rate) if rate < WORTHWHILE * best => break Limit::Speed,
                Some(rate) => (batch, best) = (2 * batch, rate),
            }
        };
        give_back(self.device)?;
        Ok(Found { batch, limit })
    }
}

/// Whether enough memory of a device is left that nobody has taken.
fn has_headroom(device: &Device) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let memory = oodbench_cuda::memory::memory(device)?;
        return Ok(memory.free as f64 >= HEADROOM * memory.total as f64);
    }
    let _ = device;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::bail;

    use crate::net::Pass;

    /// A network that takes so many images and no more.
    struct Narrow {
        most: usize,
        n_classes: usize,
    }

    impl EpsModel for Narrow {
        fn eps(&self, x: &Tensor, _: &Tensor, _: Option<&Tensor>, _: Pass<'_>) -> Result<Tensor> {
            if x.dim(0)? > self.most {
                bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
            }
            Ok(x.clone())
        }

        fn n_classes(&self) -> usize {
            self.n_classes
        }

        fn image_size(&self) -> usize {
            4
        }
    }

    fn evaluation(model: &Narrow) -> Evaluation<'_> {
        Evaluation { model, beta: 2.0, size: (4, 4), device: &Device::Cpu }
    }

    #[test]
    fn what_fits_is_found_by_halving() {
        let fits =
            |most, n_classes, batch| evaluation(&Narrow { most, n_classes }).fits_below(batch);
        assert_eq!(fits(100, 0, 1024), Some(64));
        assert_eq!(fits(100, 10, 1024), Some(64));
        assert_eq!(fits(3, 0, 3000), Some(2));
        assert_eq!(fits(0, 0, 64), None);
        // A pair of branches cannot be halved.
        assert_eq!(fits(1, 10, 64), None);
    }

    #[test]
    fn a_batch_is_a_number_or_auto() {
        for (text, batch) in [("64", Batch::Of(64)), ("auto", Batch::Auto)] {
            assert_eq!(text.parse(), Ok(batch));
            assert_eq!(batch.to_string(), text);
            let json = serde_json::to_value(batch).unwrap();
            assert_eq!(serde_json::from_value::<Batch>(json).unwrap(), batch);
        }
        assert_eq!(serde_json::to_string(&Batch::Of(64)).unwrap(), "64");
        for text in ["0", "65537", "-1", "many", ""] {
            assert_eq!(text.parse::<Batch>(), Err(format!("expected {EXPECTED}")));
        }
        let error = serde_json::from_str::<Batch>("\"many\"").unwrap_err().to_string();
        assert!(error.contains("expected a number from 1 to 65536, or `auto`"), "{error}");
        let error = serde_json::from_str::<Batch>("-1").unwrap_err().to_string();
        assert!(error.contains("`-1`, expected a number from 1 to 65536"), "{error}");
        assert!(Batch::Of(0).is_out_of_range() && !Batch::default().is_out_of_range());
    }

    #[test]
    fn on_the_cpu_nothing_is_tried() {
        let found = evaluation(&Narrow { most: 0, n_classes: 0 }).largest(4096).unwrap();
        assert_eq!(found, Found { batch: DEFAULT_BATCH, limit: Limit::Cpu });
        assert_eq!(found.line(), "batch 64: the default on the CPU");
    }
}
