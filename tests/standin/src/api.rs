//! What every entry of the stand-in shares: refusals, handles, and reading and writing through
//! the caller's pointers.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

/// Why a call fails: the code that the caller gets, and the line that a person reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u32,
    /// Empty where the code is an ordinary answer, such as "not ready".
    pub(crate) line: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Refusal>;

/// A refusal with its line.
pub(crate) fn refusal(code: u32, line: impl Into<String>) -> Refusal {
    Refusal { code, line: line.into() }
}

/// Writes one line for a person.
#[expect(clippy::print_stderr, reason = "a library without a host has no other voice")]
pub(crate) fn say(line: &str) {
    eprintln!("standin: {line}");
}

/// Whether a switch in the environment is on.
pub(crate) fn switched_on(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value == "1")
}

/// Runs the body of an entry; answers with its code, and says why where it refuses.
pub(crate) fn answer(entry: &str, panicked: u32, body: impl FnOnce() -> Outcome) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(refusal)) => {
            if !refusal.line.is_empty() {
                say(&format!("{entry}: {} (code {})", refusal.line, refusal.code));
            }
            refusal.code
        }
        Err(_) => {
            say(&format!("{entry}: the stand-in panicked"));
            panicked
        }
    }
}

/// A lock that a panic elsewhere does not spoil.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Objects behind opaque handles. A handle is never given twice, so a stale one is noticed.
pub(crate) struct Handles<T> {
    kind: &'static str,
    live: LazyLock<Mutex<BTreeMap<usize, Arc<T>>>>,
}

static NEXT: AtomicUsize = AtomicUsize::new(0x0005_7a4d_0000_0000);

impl<T> Handles<T> {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self { kind, live: LazyLock::new(|| Mutex::new(BTreeMap::new())) }
    }

    pub(crate) fn insert(&self, object: T) -> usize {
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        lock(&self.live).insert(handle, Arc::new(object));
        handle
    }

    /// # Errors
    /// `code` where the handle was never given or is destroyed.
    pub(crate) fn get(&self, handle: usize, code: u32) -> Outcome<Arc<T>> {
        let found = lock(&self.live).get(&handle).cloned();
        found.ok_or_else(|| refusal(code, format!("{handle:#x} is no live {}", self.kind)))
    }

    /// # Errors
    /// `code` where the handle was never given or is destroyed already.
    pub(crate) fn remove(&self, handle: usize, code: u32) -> Outcome<Arc<T>> {
        let found = lock(&self.live).remove(&handle);
        found.ok_or_else(|| refusal(code, format!("{handle:#x} is no live {}", self.kind)))
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.live).values().cloned().collect()
    }
}

/// Stores a result through the caller's pointer.
///
/// # Errors
/// `code` where the pointer is null or misaligned.
pub(crate) fn put<T>(to: *mut T, value: T, code: u32) -> Outcome {
    if to.is_null() || !to.is_aligned() {
        return Err(refusal(code, format!("result pointer {to:p} is null or misaligned")));
    }
    // SAFETY: the caller owes a pointer to room for one value; null and misaligned are refused.
    unsafe { to.write(value) };
    Ok(())
}

/// Reads one value through the caller's pointer.
///
/// # Errors
/// `code` where the pointer is null or misaligned.
pub(crate) fn peek<T: Copy>(from: *const T, code: u32) -> Outcome<T> {
    if from.is_null() || !from.is_aligned() {
        return Err(refusal(code, format!("argument pointer {from:p} is null or misaligned")));
    }
    // SAFETY: the caller owes a pointer to one value; null and misaligned are refused.
    Ok(unsafe { from.read() })
}

/// Reads some values through the caller's pointer.
///
/// # Errors
/// `code` where the pointer is null or misaligned and `count` is not 0.
pub(crate) fn peek_all<T: Copy>(from: *const T, count: usize, code: u32) -> Outcome<Vec<T>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    peek(from, code)?;
    // SAFETY: the caller owes `count` values; null and misaligned are refused.
    Ok(unsafe { std::slice::from_raw_parts(from, count) }.to_vec())
}
