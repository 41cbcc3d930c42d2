//! With `STANDIN_RACES=1`: threads that touch the same global memory during one launch, one of them
//! writing, where nothing puts them in an order.
//!
//! Threads run one after the other here, so that a sum that several threads add to without atomics
//! comes out right; on a device it does not. Within a block barriers give an order, between blocks
//! only the end of the launch does. A kernel whose last block gathers what the others left, after
//! counting them with an atomic, is sound and still reported: that order is not followed.

use std::collections::HashMap;

/// Bytes that share an entry of the map, and bytes that one cell stands for.
const PAGE: u64 = 4096;
const GRAIN: u64 = 2;

/// What an access does; the numbers are those of the prelude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

impl Access {
    pub(super) fn of(number: u32) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            _ => Self::Atomic,
        }
    }
}

/// A thread at a moment: barriers of its block, and of its warp, that lie behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) block: [u32; 3],
    pub(super) thread: u32,
    pub(super) epoch: u32,
    pub(super) meeting: u32,
}

impl Moment {
    /// Whether an earlier access is known to come before this one.
    fn is_after(&self, earlier: &Self) -> bool {
        let same_warp = self.thread / 32 == earlier.thread / 32;
        self.block == earlier.block
            && (self.thread == earlier.thread
                || self.epoch > earlier.epoch
                || (same_warp && self.meeting > earlier.meeting))
    }
}

#[derive(Clone, Copy, Default)]
struct Cell {
    /// Who wrote last, and whether atomically.
    writer: Option<(Moment, bool)>,
    /// Two readers since then, of different threads where there were such.
    readers: [Option<Moment>; 2],
}

/// Who touched what during one launch.
#[derive(Default)]
pub(super) struct Watch {
    pages: HashMap<u64, Vec<Cell>>,
}

impl Watch {
    /// Notes an access; answers an earlier one that it is in no order with.
    pub(super) fn note(
        &mut self,
        address: u64,
        len: u64,
        access: Access,
        now: Moment,
    ) -> Option<Moment> {
        // Neighbouring single bytes share a cell, and are left out.
        if len < GRAIN {
            return None;
        }
        for at in (address..address + len).step_by(GRAIN as usize) {
            let page = self.pages.entry(at / PAGE).or_default();
            if page.is_empty() {
                page.resize((PAGE / GRAIN) as usize, Cell::default());
            }
            let cell = &mut page[(at % PAGE / GRAIN) as usize];
            if let Some((writer, atomically)) = cell.writer
                && !(atomically && access == Access::Atomic)
                && !now.is_after(&writer)
            {
                return Some(writer);
            }
            if access == Access::Read {
                let [first, second] = &mut cell.readers;
                match first {
                    Some(first) if first.block != now.block || first.thread != now.thread => {
                        *second = Some(now);
                    }
                    _ => *first = Some(now),
                }
                continue;
            }
            if let Some(reader) = cell.readers.iter().flatten().find(|reader| !now.is_after(reader))
            {
                return Some(*reader);
            }
            cell.readers = [None; 2];
            cell.writer = Some((now, access == Access::Atomic));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(block: u32, thread: u32, epoch: u32) -> Moment {
        Moment { block: [block, 0, 0], thread, epoch, meeting: 0 }
    }

    #[test]
    fn only_what_is_in_no_order_is_a_race() {
        use Access::{Atomic, Read, Write};
        let race = |steps: &[(Access, Moment)]| {
            let mut watch = Watch::default();
            steps.iter().any(|(access, now)| watch.note(64, 4, *access, *now).is_some())
        };
        let (a, b) = (moment(0, 0, 1), moment(0, 1, 1));
        assert!(race(&[(Write, a), (Write, b)]));
        assert!(race(&[(Write, a), (Read, b)]));
        assert!(race(&[(Read, a), (Write, b)]));
        assert!(race(&[(Read, a), (Read, b), (Write, a)]));
        assert!(race(&[(Atomic, a), (Read, b)]));
        assert!(!race(&[(Atomic, a), (Atomic, b)]));
        assert!(!race(&[(Read, a), (Read, b)]));
        assert!(!race(&[(Read, a), (Write, a)]));
        assert!(!race(&[(Write, a), (Read, moment(0, 1, 2))]), "a barrier between");
        assert!(race(&[(Write, a), (Read, moment(1, 0, 2))]), "another block");
    }
}
