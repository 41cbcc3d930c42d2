//! Device memory: an ordered map of what is allocated, over address space of the host.
//!
//! Addresses are handed out in rings, so that freed memory is long unused before its addresses
//! come back and a use after free is noticed. New memory is filled with 0xFF, which is NaN in
//! every float format.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ops::Bound;
use std::sync::{LazyLock, Mutex, MutexGuard};

use super::codes::{ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY};
use crate::api::{Outcome, lock, refusal};

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        off: i64,
    ) -> *mut c_void;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
}

const GRANULE: usize = 512;
const PAGE: usize = 4096;
const SMALL: usize = 64 << 10;
const POISON: u8 = 0xFF;

/// What a range of addresses is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From `cuMemAlloc` or `cuMemAllocAsync`.
    Device,
    /// A variable of a module.
    Module,
    /// Page-locked memory of the host, which the device may read and write.
    Pinned,
    /// Promised to a graph; not to be touched before the graph's node has run.
    Promised,
    /// Of a graph whose node has run.
    Graph,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) kind: Kind,
}

/// Reserved address space, handed out from the front and again from the front when used up.
struct Ring {
    base: usize,
    len: usize,
    cursor: usize,
}

impl Ring {
    fn reserve(len: usize) -> Self {
        const READ_WRITE: c_int = 3;
        const PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x02 | 0x20 | 0x4000;
        // SAFETY: a fresh anonymous mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap(std::ptr::null_mut(), len, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
        } as usize;
        assert!(base != usize::MAX, "address space for {len} bytes can be reserved");
        Self { base, len, cursor: base }
    }

    /// A free stretch of `len` bytes with a guard of one granule behind it.
    fn take(&mut self, len: usize, live: &BTreeMap<usize, Range>) -> Option<usize> {
        let needed = len + GRANULE;
        let mut wrapped = false;
        loop {
            if self.cursor + needed > self.base + self.len {
                if wrapped {
                    return None;
                }
                wrapped = true;
                self.cursor = self.base;
            }
            // The live range that reaches furthest into the stretch, if one does.
            let end = self.cursor + needed;
            match live.range(..end).next_back() {
                Some((_, range)) if range.start + range.len + GRANULE > self.cursor => {
                    self.cursor = (range.start + range.len + GRANULE).next_multiple_of(GRANULE);
                }
                _ => {
                    let start = self.cursor;
                    self.cursor = end.next_multiple_of(GRANULE);
                    return Some(start);
                }
            }
        }
    }
}

pub(crate) struct Memory {
    live: BTreeMap<usize, Range>,
    freed: BTreeMap<usize, usize>,
    large: Ring,
    small: Ring,
    pub(crate) limit: usize,
    pub(crate) used: usize,
    pub(crate) peak: usize,
    /// What the pool holds, in use or kept for the next allocation.
    pub(crate) reserved: usize,
    pub(crate) release_threshold: u64,
}

static MEMORY: LazyLock<Mutex<Memory>> = LazyLock::new(|| {
    let told = std::env::var("STANDIN_MEMORY").ok();
    let limit = told
        .map_or(8 << 30, |text| text.parse().expect("STANDIN_MEMORY expected a number of bytes"));
    Mutex::new(Memory::new(limit))
});

/// The device's memory.
pub(crate) fn memory() -> MutexGuard<'static, Memory> {
    lock(&MEMORY)
}

impl Memory {
    pub(crate) fn new(limit: usize) -> Self {
        let space = limit.saturating_mul(8).clamp(1 << 30, 256 << 30);
        Self {
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            large: Ring::reserve(space),
            small: Ring::reserve(256 << 20),
            limit,
            used: 0,
            peak: 0,
            reserved: 0,
            release_threshold: 0,
        }
    }

    fn account(&mut self, len: usize) -> Outcome {
        let rounded = len.next_multiple_of(GRANULE);
        if self.used + rounded > self.limit {
            let line = format!("{len} bytes asked, {} of {} in use", self.used, self.limit);
            return Err(refusal(OUT_OF_MEMORY, line));
        }
        self.used += rounded;
        self.peak = self.peak.max(self.used);
        self.reserved = self.reserved.max(self.used);
        Ok(())
    }

    /// The pool gives back what it holds past so many bytes and past what is in use.
    pub(crate) fn trim(&mut self, keep: usize) {
        self.reserved = self.used.max(self.reserved.min(keep));
    }

    /// Something waited for the device: the pool gives back what is past its threshold.
    pub(crate) fn settle(&mut self) {
        self.trim(usize::try_from(self.release_threshold).unwrap_or(usize::MAX));
    }

    fn place(&mut self, len: usize, kind: Kind) -> Outcome<usize> {
        let ring = if len <= SMALL { &mut self.small } else { &mut self.large };
        let start = ring.take(len, &self.live).or_else(|| self.large.take(len, &self.live));
        let start = start.ok_or_else(|| refusal(OUT_OF_MEMORY, "address space is used up"))?;
        let overlapped = self.freed.range(..start + len).rev();
        let stale: Vec<usize> =
            overlapped.take_while(|(at, len)| *at + *len > start).map(|(at, _)| *at).collect();
        for at in stale {
            self.freed.remove(&at);
        }
        self.live.insert(start, Range { start, len, kind });
        Ok(start)
    }

    /// Memory of the device, poisoned.
    ///
    /// # Errors
    /// Out of memory; no bytes asked.
    pub(crate) fn allocate(&mut self, len: usize, kind: Kind) -> Outcome<usize> {
        if len == 0 {
            return Err(refusal(INVALID_VALUE, "an allocation of 0 bytes"));
        }
        self.account(len)?;
        let start = self.place(len, kind)?;
        fill(start, POISON, len);
        Ok(start)
    }

    /// Page-locked memory of the host: not counted, not poisoned to NaN but to 0xFF all the same.
    ///
    /// # Errors
    /// No bytes asked.
    pub(crate) fn pin(&mut self, len: usize) -> Outcome<usize> {
        if len == 0 {
            return Err(refusal(INVALID_VALUE, "an allocation of 0 bytes"));
        }
        let start = self.place(len, Kind::Pinned)?;
        fill(start, POISON, len);
        Ok(start)
    }

    /// Registers memory that the program allocated as page-locked.
    ///
    /// # Errors
    /// It overlaps what is registered.
    pub(crate) fn register(&mut self, start: usize, len: usize) -> Outcome {
        if len == 0 || self.overlapping(start, len).is_some() {
            return Err(refusal(INVALID_VALUE, "host range is empty or registered already"));
        }
        self.live.insert(start, Range { start, len, kind: Kind::Pinned });
        Ok(())
    }

    /// Ends a registration.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn unregister(&mut self, start: usize) -> Outcome {
        match self.live.get(&start) {
            Some(range) if range.kind == Kind::Pinned => {
                self.live.remove(&start);
                Ok(())
            }
            _ => Err(refusal(INVALID_VALUE, format!("{start:#x} is not registered"))),
        }
    }

    /// Addresses for a node of a graph.
    ///
    /// # Errors
    /// No bytes asked.
    pub(crate) fn promise(&mut self, len: usize) -> Outcome<usize> {
        if len == 0 {
            return Err(refusal(INVALID_VALUE, "an allocation of 0 bytes"));
        }
        self.place(len, Kind::Promised)
    }

    /// A graph's node runs: its addresses become memory.
    ///
    /// # Errors
    /// They are memory already; out of memory.
    pub(crate) fn keep_promise(&mut self, start: usize) -> Outcome {
        let range = self.live.get(&start).copied();
        let range = range.ok_or_else(|| refusal(INVALID_VALUE, "the graph is destroyed"))?;
        if range.kind != Kind::Promised {
            let line = "the graph's memory from its last launch is not freed: launch again only \
                        after freeing it, or instantiate with AUTO_FREE_ON_LAUNCH";
            return Err(refusal(INVALID_VALUE, line));
        }
        self.account(range.len)?;
        fill(start, POISON, range.len);
        self.live.insert(start, Range { kind: Kind::Graph, ..range });
        Ok(())
    }

    /// Bytes that graphs hold.
    pub(crate) fn graph_bytes(&self) -> usize {
        let graphs = self.live.values().filter(|range| range.kind == Kind::Graph);
        graphs.map(|range| range.len.next_multiple_of(GRANULE)).sum()
    }

    /// The kind of the allocation that starts here.
    pub(crate) fn kind_at(&self, start: usize) -> Option<Kind> {
        self.live.get(&start).map(|range| range.kind)
    }

    /// Frees memory of the device.
    ///
    /// # Errors
    /// Nothing of the kind starts here.
    pub(crate) fn free(&mut self, start: usize) -> Outcome {
        let range = match self.live.get(&start).copied() {
            Some(range) if range.kind != Kind::Pinned && range.kind != Kind::Promised => range,
            _ => {
                let line = format!("free of {start:#x}: {}", self.explain(start));
                return Err(refusal(INVALID_VALUE, line));
            }
        };
        self.used -= range.len.next_multiple_of(GRANULE);
        if range.kind == Kind::Graph {
            self.live.insert(start, Range { kind: Kind::Promised, ..range });
        } else {
            self.live.remove(&start);
            self.freed.insert(start, range.len);
            if self.freed.len() > 100_000 {
                self.freed.pop_first();
            }
        }
        give_back(start, range.len);
        Ok(())
    }

    /// Frees page-locked memory of the host.
    ///
    /// # Errors
    /// None starts here.
    pub(crate) fn free_pinned(&mut self, start: usize) -> Outcome {
        let range = self.live.get(&start).copied().filter(|range| range.kind == Kind::Pinned);
        let range = range.ok_or_else(|| {
            refusal(INVALID_VALUE, format!("{start:#x} is no page-locked memory"))
        })?;
        self.live.remove(&start);
        self.freed.insert(start, range.len);
        give_back(start, range.len);
        Ok(())
    }

    fn overlapping(&self, start: usize, len: usize) -> Option<Range> {
        let last = self.live.range((Bound::Unbounded, Bound::Excluded(start + len.max(1))));
        last.map(|(_, range)| *range).next_back().filter(|range| range.start + range.len > start)
    }

    /// The allocation that holds all of these bytes and may be touched now.
    pub(crate) fn find(&self, start: usize, len: usize) -> Option<Range> {
        let range = self.overlapping(start, 1)?;
        let inside = start >= range.start && len <= range.start + range.len - start;
        (inside && range.kind != Kind::Promised).then_some(range)
    }

    /// Whether this could be a pointer to memory of the device by the time that work runs.
    pub(crate) fn could_be_pointer(&self, address: usize) -> bool {
        // One past the end is what an empty view at the end of a buffer has.
        self.overlapping(address, 1).is_some()
            || self.overlapping(address.saturating_sub(1), 1).is_some()
    }

    /// Whether it is page-locked memory of the host.
    pub(crate) fn is_pinned(&self, start: usize, len: usize) -> bool {
        self.find(start, len).is_some_and(|range| range.kind == Kind::Pinned)
    }

    /// Refuses a range that is not wholly inside one allocation.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn check(&self, what: &str, start: usize, len: usize) -> Outcome {
        if len == 0 || self.find(start, len).is_some() {
            return Ok(());
        }
        let line = format!("{what}: {len} bytes at {start:#x}: {}", self.explain(start));
        Err(refusal(ILLEGAL_ADDRESS, line))
    }

    /// What is known of an address, for a message.
    pub(crate) fn explain(&self, address: usize) -> String {
        if address == 0 {
            return "a null pointer".into();
        }
        if let Some((_, range)) = self.live.range(..=address).next_back() {
            let (offset, len) = (address - range.start, range.len);
            if offset < len && range.kind == Kind::Promised {
                return "memory of a graph whose node has not run".into();
            }
            if offset < len {
                return format!("byte {offset} of an allocation of {len} bytes");
            }
            if offset < len + GRANULE {
                return format!("{} bytes past an allocation of {len} bytes", offset - len);
            }
        }
        if let Some((start, len)) = self.freed.range(..=address).next_back()
            && address < start + len
        {
            return format!("byte {} of {len} bytes that are freed", address - start);
        }
        "no memory of the device".into()
    }
}

/// Fills memory that the caller knows to be allocated.
fn fill(start: usize, byte: u8, len: usize) {
    // SAFETY: the range was just taken from a ring, which is mapped readable and writable.
    unsafe { std::ptr::write_bytes(start as *mut u8, byte, len) };
}

/// Gives whole pages back to the operating system; their addresses stay reserved.
fn give_back(start: usize, len: usize) {
    const DONT_NEED: c_int = 4;
    let first = start.next_multiple_of(PAGE);
    let end = (start + len) / PAGE * PAGE;
    if len > SMALL && end > first {
        // SAFETY: only pages that lie wholly in a range that is no longer allocated. Failure
        // would only mean that the pages stay resident.
        let _ = unsafe { madvise(first as *mut c_void, end - first, DONT_NEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_found_and_poisoned_and_then_gone() {
        let mut memory = Memory::new(1 << 20);
        let at = memory.allocate(100, Kind::Device).unwrap();
        assert!(memory.find(at, 100).is_some());
        assert!(memory.find(at + 1, 100).is_none());
        // SAFETY: just allocated.
        assert_eq!(unsafe { (at as *const u8).read() }, 0xFF);
        memory.free(at).unwrap();
        assert!(memory.find(at, 1).is_none());
        assert!(memory.explain(at + 4).contains("freed"), "{}", memory.explain(at + 4));
        assert_eq!(memory.free(at).unwrap_err().code, INVALID_VALUE);
        assert_eq!(memory.used, 0);
    }

    #[test]
    fn the_limit_holds_and_addresses_come_back_only_after_the_ring_is_round() {
        let mut memory = Memory::new(1 << 20);
        assert_eq!(memory.allocate((1 << 20) + 1, Kind::Device).unwrap_err().code, OUT_OF_MEMORY);
        let kept = memory.allocate(100_000, Kind::Device).unwrap();
        let mut last = kept;
        for _ in 0..30_000 {
            let at = memory.allocate(70_000, Kind::Device).unwrap();
            assert!(at + 70_000 <= kept || at >= kept + 100_000 + GRANULE);
            assert_ne!(at, last);
            memory.free(at).unwrap();
            last = at;
        }
        assert!(memory.find(kept, 100_000).is_some());
    }

    #[test]
    fn the_pool_keeps_what_its_threshold_allows_until_it_is_trimmed() {
        let mut memory = Memory::new(1 << 20);
        memory.release_threshold = u64::MAX;
        let at = memory.allocate(4096, Kind::Device).unwrap();
        memory.free(at).unwrap();
        memory.settle();
        assert_eq!((memory.used, memory.reserved), (0, 4096));
        // What is kept is no hindrance: it is given out again.
        let all = memory.allocate(1 << 20, Kind::Device).unwrap();
        memory.free(all).unwrap();
        memory.trim(1024);
        assert_eq!(memory.reserved, 1024);
        memory.release_threshold = 0;
        memory.settle();
        assert_eq!(memory.reserved, 0);
    }

    #[test]
    fn a_graphs_memory_is_there_only_between_its_nodes() {
        let mut memory = Memory::new(1 << 20);
        let at = memory.promise(4096).unwrap();
        assert!(memory.find(at, 1).is_none() && memory.could_be_pointer(at));
        memory.keep_promise(at).unwrap();
        assert!(memory.find(at, 4096).is_some());
        assert_eq!(memory.keep_promise(at).unwrap_err().code, INVALID_VALUE);
        memory.free(at).unwrap();
        assert!(memory.find(at, 1).is_none());
        memory.keep_promise(at).unwrap();
    }
}
