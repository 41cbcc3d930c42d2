//! A detector under another name: many trainings leave an embedding that a detector for any
//! classifier then scores, and differ in the paper alone.

use oodbench_sdk::prelude::*;

/// What a training method's detector is called, and what it scores by.
pub trait Companion: 'static {
    /// The detector that computes.
    type Score: Detector;

    /// What is known of it, in place of [`Companion::Score`]'s own.
    fn info() -> Info;
}

/// The detector of a training method.
pub struct Scored<C: Companion>(C::Score);

impl<C: Companion> Detector for Scored<C> {
    type Params = <C::Score as Detector>::Params;

    fn info() -> Info {
        C::info()
    }

    fn new(params: Self::Params, host: Host) -> Result<Self> {
        Ok(Self(C::Score::new(params, host)?))
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        self.0.fit(data)
    }

    fn check_readout(&self, params: &Self::Params) -> Result<()> {
        self.0.check_readout(params)
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        self.0.score(batch, scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Self::Params],
        scores: &mut [f32],
    ) -> Result<()> {
        self.0.score_variants(batch, variants, scores)
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        self.0.save_state()
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.load_state(bytes)
    }
}
