//! How long work tells how far it is. What is shown, and where, is the binary's business.

/// Told about one piece of work at a time.
pub trait Progress: Sync {
    /// Work of `total` steps begins. A total of 0 means that nobody knows.
    fn begin(&self, what: &str, total: u64);
    /// `steps` more are done.
    fn advance(&self, steps: u64);
    /// The work that began last has ended, well or not.
    fn end(&self);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, _steps: u64) {}
    fn end(&self) {}
}
