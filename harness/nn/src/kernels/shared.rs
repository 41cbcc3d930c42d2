//! An output that several threads write at once, each its own part.

use std::marker::PhantomData;

/// The memory of a vector in the making, written by several threads. The parts of a picture that a
/// thread works on are strided, so that the memory cannot be split into one piece for each. It is
/// not zeroed first: for large activations that costs as much as a layer.
pub(super) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is to memory that is borrowed exclusively for `'a`; the only access is
// through `Shared::write`, whose callers promise not to overlap.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    /// Elements `start..` become `values`.
    ///
    /// # Safety
    /// Nobody else writes any of these elements at the same time.
    #[inline(always)]
    pub(super) unsafe fn write(&self, start: usize, values: &[f32]) {
        let end = start.checked_add(values.len());
        assert!(end.is_some_and(|end| end <= self.len), "part {start}+{}", values.len());
        #[inline(always)]
        unsafe fn fixed<const N: usize>(from: *const f32, to: *mut f32) {
            // SAFETY: the caller has checked that there are `N` elements on both sides.
            unsafe { to.cast::<[f32; N]>().write(from.cast::<[f32; N]>().read()) };
        }
        let from = values.as_ptr();
        // SAFETY: the range was checked against the memory, which is borrowed exclusively, and the
        // caller promises that nobody else writes there. `values` is borrowed, so it lies elsewhere.
        // The lengths of rows of small images are copied without calling a function.
        unsafe {
            let to = self.data.add(start);
            match values.len() {
                32 => fixed::<32>(from, to),
                16 => fixed::<16>(from, to),
                8 => fixed::<8>(from, to),
                len => to.copy_from_nonoverlapping(from, len),
            }
        }
    }
}

/// A vector of `len` elements, all of which `fill` writes.
///
/// # Safety
/// `fill` writes every element.
pub(super) unsafe fn filled(len: usize, fill: impl FnOnce(&Shared<'_>)) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    let data = out.spare_capacity_mut();
    fill(&Shared { data: data.as_mut_ptr().cast(), len, borrowed: PhantomData });
    // SAFETY: there is room for `len` elements, and the caller promises that all were written.
    unsafe { out.set_len(len) };
    out
}

/// Runs `fill` on memory that holds values already.
pub(super) fn refilled(data: &mut [f32], fill: impl FnOnce(&Shared<'_>)) {
    fill(&Shared { data: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn threads_fill_columns_of_a_matrix() {
        let fill = |shared: &Shared<'_>| {
            (0..4).into_par_iter().for_each(|column| {
                for row in 0..6 {
                    // SAFETY: each thread has a column of its own.
                    unsafe { shared.write(row * 4 + column, &[(row * 10 + column) as f32]) };
                }
            });
        };
        // SAFETY: six rows of four columns.
        let data = unsafe { filled(24, fill) };
        assert!(data.iter().enumerate().all(|(i, &x)| x == (i / 4 * 10 + i % 4) as f32));
        let mut again = vec![-1.0; 24];
        refilled(&mut again, fill);
        assert_eq!(again, data);
    }
}
