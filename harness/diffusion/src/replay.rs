//! A network whose work on a GPU is recorded once for each shape, and replayed as one launch: see
//! `oodbench_cuda::graph`. On the CPU it is the network itself.
//!
//! What the steps and classes make is computed as ever, a few small launches; what the image makes,
//! some hundreds of them, is replayed ([`Halves`]). A recording is used only
//! after its result was compared with that of the launches one by one.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};

use crate::net::{EpsModel, Halves, Pass};

/// Why a network is not replayed where it could be, once that is known.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<Option<String>>>);

impl Refused {
    /// One line.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One line for the user, who believes that the network is replayed.
    pub fn warning(&self) -> Option<String> {
        self.reason().map(|reason| format!("steps are not replayed as CUDA graphs: {reason}"))
    }

    #[cfg(feature = "cuda")]
    fn say(&self, reason: &candle_core::Error) {
        let line = reason.to_string().lines().next().unwrap_or_default().to_owned();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(line);
    }
}

/// The network, replayed on a GPU; and where it says that it cannot be.
///
/// While it records, nobody else may use the stream of its device.
pub fn replayed(model: Box<dyn EpsModel>) -> (Box<dyn EpsModel>, Refused) {
    let refused = Refused::default();
    let replayed = Replayed {
        model,
        #[cfg(feature = "cuda")]
        shapes: Mutex::default(),
        #[cfg(feature = "cuda")]
        refused: refused.clone(),
    };
    (Box::new(replayed), refused)
}

struct Replayed {
    model: Box<dyn EpsModel>,
    #[cfg(feature = "cuda")]
    shapes: Mutex<Vec<recorded::Shape>>,
    #[cfg(feature = "cuda")]
    refused: Refused,
}

impl EpsModel for Replayed {
    fn eps(&self, x_t: &Tensor, t: &Tensor, y: Option<&Tensor>, pass: Pass<'_>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x_t.device().is_cuda()
            && matches!(pass, Pass::Sample)
            && let Some(halves) = self.model.halves()
        {
            let condition = halves.condition(t, y)?;
            let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
            return recorded::eps(&mut shapes, halves, x_t, &condition, &self.refused);
        }
        self.model.eps(x_t, t, y, pass)
    }

    fn n_classes(&self) -> usize {
        self.model.n_classes()
    }

    fn image_size(&self) -> usize {
        self.model.image_size()
    }

    fn halves(&self) -> Option<&dyn Halves> {
        self.model.halves()
    }
}

#[cfg(feature = "cuda")]
mod recorded {
    use candle_core::{Error, Result, Tensor};
    use oodbench_cuda::graph::Replay;

    use super::Refused;
    use crate::net::{Halves, Pass};

    /// Shapes that are kept. A run has one, and another for its last batch where that is smaller.
    const MOST_SHAPES: usize = 4;

    /// How far a replayed result may be off, as a fraction of the greatest value: kernels that sum
    /// in an order of their own round differently.
    const TOLERANCE: f32 = 1e-3;

    /// What is known of one shape.
    pub(super) struct Shape {
        images: Vec<usize>,
        tf32: bool,
        /// Absent where it cannot be recorded.
        recording: Option<Recording>,
    }

    struct Recording {
        replay: Replay,
        x_t: Tensor,
        condition: Tensor,
        eps: Tensor,
    }

    /// The noise, by a recording where there can be one.
    pub(super) fn eps(
        shapes: &mut Vec<Shape>,
        halves: &dyn Halves,
        x_t: &Tensor,
        condition: &Tensor,
        refused: &Refused,
    ) -> Result<Tensor> {
        let tf32 = oodbench_cuda::tf32();
        let known = shapes.iter().position(|of| of.images == x_t.dims() && of.tf32 == tf32);
        let place = match known {
            Some(place) => place,
            None => {
                // Memory that does not suffice for this alone is no matter of the recording.
                let expected = halves.eps_under(x_t, condition, Pass::Sample)?;
                let recording = Recording::new(halves, x_t, condition, &expected);
                let recording = recording.map_err(|reason| refused.say(&reason)).ok();
                if shapes.len() == MOST_SHAPES {
                    shapes.remove(0);
                }
                shapes.push(Shape { images: x_t.dims().to_vec(), tf32, recording });
                return Ok(expected);
            }
        };
        match &mut shapes[place].recording {
            Some(recording) => recording.eps(x_t, condition),
            None => halves.eps_under(x_t, condition, Pass::Sample),
        }
    }

    impl Recording {
        fn new(
            halves: &dyn Halves,
            x_t: &Tensor,
            condition: &Tensor,
            expected: &Tensor,
        ) -> Result<Self> {
            let own = |tensor: &Tensor| tensor.detach().contiguous()?.copy();
            let (of_x, of_condition, eps) = (own(x_t)?, own(condition)?, own(expected)?);
            let mut replay = Replay::record(x_t.device(), || {
                let found = halves.eps_under(&of_x, &of_condition, Pass::Sample)?;
                eps.slice_set(&found.contiguous()?, 0, 0)
            })?;
            eps.zero_set()?;
            // The second one shows that the first gave its memory back.
            replay.launch()?;
            replay.launch()?;
            let greatest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar();
            let (off, scale): (f32, f32) = (greatest(&(&eps - expected)?)?, greatest(expected)?);
            if off.is_nan() || off > TOLERANCE * scale {
                return Err(Error::msg(format!(
                    "a recorded step expected the result of one that is not, got one that is off by {off:e} of {scale:e}"
                )));
            }
            Ok(Self { replay, x_t: of_x, condition: of_condition, eps })
        }

        fn eps(&mut self, x_t: &Tensor, condition: &Tensor) -> Result<Tensor> {
            self.x_t.slice_set(&x_t.detach().contiguous()?, 0, 0)?;
            self.condition.slice_set(&condition.detach().contiguous()?, 0, 0)?;
            self.replay.launch()?;
            self.eps.copy()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use oodbench_nn::formula;

    #[test]
    fn on_the_cpu_it_is_the_network_itself() {
        let network = || crate::denoise::network::untrained(4, 2, &Device::Cpu).unwrap().model;
        let x = Tensor::from_vec(formula::normal("x", 96), (2, 3, 4, 4), &Device::Cpu).unwrap();
        let t = Tensor::new(&[3f32, 40.0], &Device::Cpu).unwrap();
        let y = Tensor::new(&[0u32, 2], &Device::Cpu).unwrap();
        let eps = |model: &dyn EpsModel| {
            let eps = model.eps(&x, &t, Some(&y), Pass::Sample).unwrap();
            eps.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (model, refused) = replayed(network());
        assert_eq!(eps(model.as_ref()), eps(network().as_ref()));
        assert_eq!((model.n_classes(), model.image_size()), (2, 4));
        assert_eq!(refused.reason(), None);
    }
}
