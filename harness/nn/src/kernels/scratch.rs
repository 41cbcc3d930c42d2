//! Memory that is used again: operands that a kernel lays out for itself.
//!
//! They are as large as the activations, and fresh memory costs a page fault for each 4 KiB, which
//! is more than filling it. So each thread keeps what it had.

use std::cell::RefCell;

use super::micro::Line;

thread_local! {
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with so many lines, whose values are whatever was there. May be nested.
pub(super) fn with_lines<R>(len: usize, f: impl FnOnce(&mut [Line]) -> R) -> R {
    let mut lines = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    if lines.len() < len {
        lines.resize(len, [0.0; _]);
    }
    let result = f(&mut lines[..len]);
    KEPT.with_borrow_mut(|kept| kept.push(lines));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_calls_have_lines_of_their_own() {
        with_lines(3, |outer| {
            outer.fill([1.0; _]);
            with_lines(5, |inner| inner.fill([2.0; _]));
            assert!(outer.iter().flatten().all(|&x| x == 1.0));
        });
        with_lines(4, |again| assert_eq!(again.len(), 4));
    }
}
