//! With `STANDIN_ORDER`: in which order blocks and the threads of a block have their turns.
//!
//! A device promises none. A kernel that computes something else in another order lacks a barrier, or
//! counts on blocks to run one after the other. It concerns kernels whose threads meet; of the others
//! `STANDIN_RACES` tells more.

use std::sync::LazyLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// From the first to the last; after each barrier the threads the other way round.
    Forward,
    Reverse,
    /// Another one for each launch and turn, from a seed.
    Shuffle(u64),
}

/// # Panics
/// The variable says what is none of the orders.
static KIND: LazyLock<Kind> = LazyLock::new(|| {
    let value = std::env::var_os("STANDIN_ORDER").unwrap_or_default();
    let text = value.to_string_lossy();
    parse(&text).unwrap_or_else(|| {
        panic!("`STANDIN_ORDER` expected `forward`, `reverse`, `shuffle` or `shuffle:SEED`, got `{text}`")
    })
});

fn parse(text: &str) -> Option<Kind> {
    match text.split_once(':') {
        Some(("shuffle", seed)) => seed.parse().ok().map(Kind::Shuffle),
        Some(_) => None,
        None => match text {
            "" | "forward" => Some(Kind::Forward),
            "reverse" => Some(Kind::Reverse),
            "shuffle" => Some(Kind::Shuffle(0)),
            _ => None,
        },
    }
}

/// The order of one launch.
pub(super) struct Order {
    kind: Kind,
    state: u64,
}

impl Order {
    pub(super) fn new() -> Self {
        Self::of(*KIND)
    }

    fn of(kind: Kind) -> Self {
        Self { kind, state: if let Kind::Shuffle(seed) = kind { seed } else { 0 } }
    }

    /// The blocks of a grid by their number.
    pub(super) fn blocks(&mut self, count: usize) -> Box<dyn Iterator<Item = usize>> {
        match self.kind {
            Kind::Forward => Box::new(0..count),
            Kind::Reverse => Box::new((0..count).rev()),
            Kind::Shuffle(_) => {
                let mut blocks = (0..count).collect::<Vec<_>>();
                self.shuffle(&mut blocks);
                Box::new(blocks.into_iter())
            }
        }
    }

    /// Puts threads that have a turn into their order.
    pub(super) fn arrange(&mut self, threads: &mut [usize]) {
        match self.kind {
            Kind::Forward => {}
            Kind::Reverse => threads.sort_unstable_by(|a, b| b.cmp(a)),
            Kind::Shuffle(_) => self.shuffle(threads),
        }
    }

    fn shuffle(&mut self, of: &mut [usize]) {
        for last in (1..of.len()).rev() {
            of.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_a_name_and_perhaps_a_seed() {
        assert_eq!(parse(""), Some(Kind::Forward));
        assert_eq!(parse("reverse"), Some(Kind::Reverse));
        assert_eq!(parse("shuffle:7"), Some(Kind::Shuffle(7)));
        assert_eq!(parse("shuffle:x"), None);
        assert_eq!(parse("backward"), None);
    }

    #[test]
    fn every_block_and_thread_has_its_turn() {
        for (text, expected) in [("", 0), ("reverse", 99), ("shuffle:3", 1)] {
            let mut order = Order::of(parse(text).unwrap());
            let mut blocks: Vec<_> = order.blocks(100).collect();
            let mut threads: Vec<_> = (0..100).collect();
            order.arrange(&mut threads);
            if expected == 1 {
                assert!(!blocks.is_sorted() && !threads.is_sorted() && blocks != threads);
            } else {
                assert_eq!((blocks[0], threads[0]), (expected, expected));
            }
            for turns in [&mut blocks, &mut threads] {
                turns.sort_unstable();
                assert!(turns.iter().copied().eq(0..100), "{text}");
            }
        }
    }
}
