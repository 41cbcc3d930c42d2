//! What several detectors compute: reductions over logits, and linear algebra.

pub mod check;
pub mod greatest;
pub mod head;
pub mod linalg;
pub mod mixture;
pub mod neighbours;
pub mod products;
pub mod random;
pub mod reduce;
pub mod state;
pub mod weibull;
