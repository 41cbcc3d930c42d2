//! A classifier on a GPU that is never out of work: while it computes, the next batch is on its way
//! to it, and the results of the last one on theirs to the host.

use candle_core::Result;

use super::Classifier;

/// Batches on their way through a classifier on a GPU.
pub struct Stream<'a> {
    #[cfg(feature = "cuda")]
    classifier: &'a Classifier,
    #[cfg(feature = "cuda")]
    staging: oodbench_cuda::staging::Staging,
    #[cfg(feature = "cuda")]
    size: (usize, usize),
    #[cfg(not(feature = "cuda"))]
    none: std::convert::Infallible,
    #[cfg(not(feature = "cuda"))]
    _of: std::marker::PhantomData<&'a Classifier>,
}

/// Results on their way to the host.
pub struct Pending {
    #[cfg(feature = "cuda")]
    logits: oodbench_cuda::staging::Fetched,
    #[cfg(feature = "cuda")]
    features: oodbench_cuda::staging::Fetched,
    #[cfg(not(feature = "cuda"))]
    none: std::convert::Infallible,
}

/// Logits and features of a batch, `[n, n_classes]` and `[n, n_features]`, flattened.
pub struct Answer {
    pub logits: Vec<f32>,
    pub features: Vec<f32>,
}

impl Classifier {
    /// A way through this classifier for batches of at most so many images of a height and a width;
    /// none on the CPU, which has nothing to wait for.
    ///
    /// # Errors
    /// Memory that cannot be had on either side.
    pub fn stream(&self, batch: usize, size: (usize, usize)) -> Result<Option<Stream<'_>>> {
        #[cfg(feature = "cuda")]
        if self.device.is_cuda() {
            let bytes = 3 * batch * size.0 * size.1;
            let staging = oodbench_cuda::staging::Staging::new(&self.device, bytes)?;
            return Ok(Some(Stream { classifier: self, staging, size }));
        }
        let _ = (batch, size);
        Ok(None)
    }
}

#[cfg(feature = "cuda")]
impl Stream<'_> {
    /// Has `fill` write the pixels of `n` images, and starts what is to be done with them. Taking
    /// the answer of a batch after the next one was sent keeps the GPU at work.
    ///
    /// # Shapes
    /// pixels: `[n, height, width, 3]`, 0 to 255
    ///
    /// # Errors
    /// More images than were announced, and what the network or the driver says.
    pub fn send(&mut self, n: usize, fill: impl FnOnce(&mut [u8])) -> Result<Pending> {
        let Classifier { normalisation, network, .. } = self.classifier;
        let normal = (normalisation.mean, normalisation.std);
        let xs = self.staging.images(n, self.size, normal, fill)?;
        let mut taps = crate::arch::Taps::none();
        let outputs = network.forward(&xs, crate::layers::Mode::Eval, &mut taps)?;
        let logits = self.staging.fetch(&outputs.logits)?;
        Ok(Pending { logits, features: self.staging.fetch(&outputs.features)? })
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// What the driver says.
    pub fn take(&mut self, pending: Pending) -> Result<Answer> {
        let logits = self.staging.take(pending.logits)?;
        Ok(Answer { logits, features: self.staging.take(pending.features)? })
    }
}

#[cfg(not(feature = "cuda"))]
impl Stream<'_> {
    /// There is none without CUDA.
    ///
    /// # Errors
    /// None: it cannot be called.
    pub fn send(&mut self, _: usize, _: impl FnOnce(&mut [u8])) -> Result<Pending> {
        match self.none {}
    }

    /// There is none without CUDA.
    ///
    /// # Errors
    /// None: it cannot be called.
    pub fn take(&mut self, pending: Pending) -> Result<Answer> {
        match pending.none {}
    }
}
