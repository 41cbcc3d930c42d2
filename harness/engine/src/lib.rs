//! From a plan of cells to records: plugin loading, feature bank, workers, resume.
