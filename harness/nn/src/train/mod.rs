//! Training: what every network needs for it, and the training of a classifier.
//!
//! A training is stepped by its caller, who decides when to save, to measure and to stop. Every
//! random number is a function of the seed and of the batch's place, so a training that was stopped
//! goes on from its checkpoint as if it had not been.

pub mod architecture;
mod average;
mod classifier;
mod error;
mod fused;
mod gradients;
mod learner;
mod order;
mod rate;
#[cfg(feature = "nccl")]
mod together;
pub mod torch;

pub use classifier::{
    ClassifierRecipe, ClassifierTraining, EpochReport, StepReport, accuracy, train_classifier,
};
pub use error::TrainError;
pub use gradients::{Alone, Gradients, Reduce};
pub use learner::{FORMAT, Learner};
pub use order::{Order, Place};
pub use rate::{Fall, Rates};
#[cfg(feature = "nccl")]
pub use together::{GroupId, Together};
