//! The Fréchet inception distance: how far apart two sets of images are in the features of
//! Inception-v3, each set taken as a normal distribution.
//!
//! Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
//! Equilibrium", 2017, equation 6:
//! `d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`.
//!
//! [`Moments`] gathers mean and covariance while features go by, in memory that does not grow with
//! the number of images; [`Statistics`] is what is left of a set, in memory or in pytorch-fid's
//! `.npz` files; [`frechet_distance`] compares two. The network is `oodbench_nn::inception`,
//! reading image files is left to `oodbench-datasets`.

mod distance;
mod error;
mod moments;
mod statistics;

pub use distance::frechet_distance;
pub use error::{FidError, StatisticsError};
pub use moments::Moments;
pub use statistics::Statistics;
