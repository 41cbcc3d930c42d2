//! How a normalisation is spread over blocks.

use candle_core::{Result, bail};

/// Threads of a block, at most; the kernels are compiled for so many.
const THREADS: usize = 512;

/// What one block works on, and which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Channels of a block: whole groups, whole packs, and a divisor of all channels.
    pub(super) slab: usize,
    /// Channels of a pack.
    pub(super) pack: usize,
    /// Two to the power of this many channels of a pack lie in one group.
    pub(super) unit_bits: usize,
    /// Threads of a block, a multiple of 32.
    pub(super) threads: usize,
    /// Packs that a thread keeps in registers; 0 where it reads them again.
    pub(super) kept: usize,
}

/// The two kernels differ in how many packs a thread can keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// What there is to spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) pixels: usize,
    pub(super) channels: usize,
    /// Channels of a group.
    pub(super) group: usize,
    /// Channels of 16 bytes, or 1 where the addresses do not allow packs.
    pub(super) pack: usize,
    pub(super) number_bytes: usize,
}

impl Plan {
    /// # Errors
    /// A group of more channels than a block can take.
    pub(super) fn new(work: &Work, pass: Pass) -> Result<Self> {
        let pack = if work.channels.is_multiple_of(work.pack) { work.pack } else { 1 };
        let slabs: Vec<usize> = (1..=work.channels)
            .filter(|slab| {
                work.channels.is_multiple_of(*slab)
                    && slab.is_multiple_of(work.group)
                    && slab.is_multiple_of(pack)
                    && slab / pack <= THREADS
            })
            .collect();
        let kept = |limit: usize, most: usize| {
            let fits = slabs
                .iter()
                .filter(|slab| pack > 1 && work.pixels.div_ceil(most) * (*slab / pack) <= limit);
            // Whole sectors of 32 bytes, two of them for the sake of the memory; then enough packs for
            // a block to be worth while; then as few as that, for many blocks.
            let rank = |slab: usize| {
                let bytes = slab * work.number_bytes;
                let sectors = if bytes.is_multiple_of(32) { (bytes / 32).min(2) } else { 0 };
                let enough = work.pixels * (slab / pack) >= 512;
                (sectors, enough, std::cmp::Reverse(slab))
            };
            fits.copied().max_by_key(|slab| rank(*slab)).map(|slab| (slab, most))
        };
        // Two blocks fit on a multiprocessor at once where the first choice can be had: one reads while
        // the other writes.
        let choice = match pass {
            Pass::Forward => kept(THREADS, 8).or_else(|| kept(THREADS, 16)),
            Pass::Backward => kept(THREADS / 2, 8).or_else(|| kept(THREADS, 8)),
        };
        let unit_bits = pack.min(1 << work.group.trailing_zeros()).trailing_zeros() as usize;
        let Some((slab, most)) = choice else {
            // The narrowest slab of at least 32 bytes.
            let narrow = slabs.iter().find(|slab| **slab * work.number_bytes >= 32);
            let Some(slab) = narrow.or(slabs.last()).copied() else {
                let limit = THREADS * pack;
                bail!("group_norm expected groups of at most {limit} channels, got {}", work.group);
            };
            let columns = slab / pack;
            let threads = ((THREADS / columns).min(work.pixels) * columns).next_multiple_of(32);
            return Ok(Self { slab, pack, unit_bits, threads, kept: 0 });
        };
        let columns = slab / pack;
        let threads = |kept: usize| (work.pixels.div_ceil(kept) * columns).next_multiple_of(32);
        // Many packs for each thread keep the memory busy, but a block of less than 128 threads does
        // not fill a multiprocessor.
        let kept = [most, 4, 2].into_iter().find(|kept| threads(*kept) >= 128).unwrap_or(2);
        Ok(Self { slab, pack, unit_bits, threads: threads(kept), kept })
    }

    /// A thread has every `lines`-th pixel of its pack of channels.
    pub(super) fn lines(&self) -> usize {
        self.threads / (self.slab / self.pack)
    }

    /// How the kernel's name ends, behind the dtype.
    pub(super) fn variant(&self) -> String {
        match (self.kept, self.pack) {
            (0, 1) => "single".to_owned(),
            (0, _) => "again".to_owned(),
            (kept, _) => format!("keep{kept}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pixels: usize, channels: usize, group: usize, bf16: bool, pass: Pass) -> Plan {
        let (pack, number_bytes) = if bf16 { (8, 2) } else { (4, 4) };
        let work = Work { pixels, channels, group, pack, number_bytes };
        let plan = Plan::new(&work, pass).unwrap();
        assert!(channels.is_multiple_of(plan.slab) && plan.slab.is_multiple_of(group), "{plan:?}");
        assert!(plan.slab.is_multiple_of(plan.pack), "{plan:?}");
        assert!(plan.threads <= THREADS && plan.threads.is_multiple_of(32), "{plan:?}");
        assert!(plan.lines() >= 1, "{plan:?}");
        assert!(plan.kept == 0 || plan.kept * plan.lines() >= pixels, "{plan:?}");
        let unit = 1 << plan.unit_bits;
        assert!(group.is_multiple_of(unit) && plan.pack.is_multiple_of(unit), "{plan:?}");
        plan
    }

    #[test]
    fn every_size_has_a_plan_that_covers_it() {
        for pass in [Pass::Forward, Pass::Backward] {
            for bf16 in [false, true] {
                for pixels in [1, 3, 16, 49, 64, 255, 256, 1024, 4096, 50_176] {
                    for groups in [1, 8, 32] {
                        for each in [1, 2, 3, 4, 5, 8, 12, 16, 20] {
                            check(pixels, groups * each, each, bf16, pass);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_images_of_the_networks_are_read_once() {
        for (side, widths) in [(32, &[128, 256, 384][..]), (16, &[256, 384, 512]), (8, &[256, 512])]
        {
            for channels in widths {
                for pass in [Pass::Forward, Pass::Backward] {
                    for bf16 in [false, true] {
                        let plan = check(side * side, *channels, channels / 32, bf16, pass);
                        assert!(plan.kept > 0, "{side} {channels}: {plan:?}");
                    }
                }
            }
        }
        let plan = check(1024, 128, 4, true, Pass::Forward);
        assert_eq!((plan.slab, plan.threads, plan.kept), (32, 512, 8));
    }

    #[test]
    fn a_group_that_no_block_can_take_is_refused() {
        let work = Work { pixels: 4, channels: 1026, group: 513, pack: 4, number_bytes: 4 };
        assert!(Plan::new(&work, Pass::Forward).is_err());
    }
}
