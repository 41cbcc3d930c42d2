//! What several detectors compute: reductions over logits, and linear algebra.

pub mod check;
pub mod class_sums;
pub mod companion;
#[cfg(test)]
pub(crate) mod formula;
pub mod further;
pub mod greatest;
pub mod head;
pub mod linalg;
pub mod logistic;
pub mod mixture;
pub mod moments;
pub mod neighbours;
pub mod products;
pub mod random;
pub mod reduce;
pub mod state;
pub mod tiles;
pub mod weibull;
pub mod wide;
