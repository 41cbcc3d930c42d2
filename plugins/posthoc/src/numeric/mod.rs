//! What several detectors compute: reductions over logits, and linear algebra.

pub mod linalg;
pub mod neighbours;
pub mod reduce;
pub mod state;
