//! `libcuda.so.1`: the driver's entries.

mod allocation;
pub(crate) mod codes;
mod copy;
mod device;
mod graph;
mod memory;
mod module;
mod stream;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use memory::Kind;
pub(crate) use memory::memory;

use crate::api::{Outcome, answer};

/// Answers a call of the driver.
fn call(entry: &str, body: impl FnOnce() -> Outcome) -> u32 {
    answer(entry, codes::UNKNOWN, || {
        device::initialised()?;
        body()
    })
}

/// Entries of a library: each is a function whose body answers with an [`Outcome`].
macro_rules! entries {
    ($answer:path; $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $ty),*) -> u32 {
                $answer(stringify!($name), || $body)
            }
        )*
    };
}
pub(crate) use entries;
