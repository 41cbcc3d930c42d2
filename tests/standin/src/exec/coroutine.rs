//! Switching between stacks, so that the threads of a block can wait for each other.

use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use crate::api::lock;

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        off: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn mprotect(at: *mut c_void, len: usize, prot: c_int) -> c_int;
}

const PAGE: usize = 4096;

/// Saves the registers that a function must keep, stores the stack pointer at `from`, and goes on
/// with the stack `to`.
///
/// # Safety
/// `to` is a stack pointer that this function stored, or one of [`Stack::prepare`].
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch(from: *mut usize, to: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Where a fresh stack begins: calls the function in `r13` with `rbx` and `r12`.
#[unsafe(naked)]
unsafe extern "C" fn begin() {
    naked_asm!("mov rdi, rbx", "mov rsi, r12", "call r13", "ud2")
}

/// What a fresh stack runs. It never returns: it switches away when it is done.
pub(super) type Start = unsafe extern "C" fn(*mut c_void, usize) -> !;

/// A stack with a guard page below it.
pub(super) struct Stack {
    base: usize,
    len: usize,
}

impl Stack {
    fn new(len: usize) -> Self {
        const READ_WRITE: c_int = 3;
        const PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x02 | 0x20 | 0x4000;
        let len = len.next_multiple_of(PAGE) + PAGE;
        // SAFETY: a fresh anonymous mapping, whose lowest page is then made inaccessible.
        let base = unsafe {
            let base =
                mmap(std::ptr::null_mut(), len, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
                    as usize;
            assert!(base != usize::MAX, "a stack can be mapped");
            assert!(mprotect(base as *mut c_void, PAGE, 0) == 0, "a page can be protected");
            base
        };
        Self { base, len }
    }

    /// The addresses that code on it may touch.
    pub(super) fn range(&self) -> (u64, u64) {
        ((self.base + PAGE) as u64, (self.len - PAGE) as u64)
    }

    /// Makes the stack begin with `start(first, second)`; answers what to switch to.
    pub(super) fn prepare(&self, start: Start, first: *mut c_void, second: usize) -> usize {
        let top = self.base + self.len;
        // Seven words from below: r15, r14, r13, r12, rbx, rbp, the address to return to. Behind
        // it the stack is aligned to 16 bytes, as a call wants it.
        let at = top - 16 - 7 * 8;
        let begin: unsafe extern "C" fn() = begin;
        let words = [0, 0, start as usize, second, first as usize, 0, begin as usize];
        // SAFETY: the words lie at the top of this stack, which nothing uses now.
        unsafe { (at as *mut [usize; 7]).write(words) };
        at
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this stack's own. Failure would only keep it mapped.
        let _ = unsafe { munmap(self.base as *mut c_void, self.len) };
    }
}

static SPARE: Mutex<Vec<Stack>> = Mutex::new(Vec::new());

/// Stacks of at least so many bytes.
pub(super) fn stacks(count: usize, bytes: usize) -> Vec<Stack> {
    let mut spare = lock(&SPARE);
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        match spare.pop() {
            Some(stack) if stack.len >= bytes + PAGE => taken.push(stack),
            Some(_) => {}
            None => taken.push(Stack::new(bytes)),
        }
    }
    taken
}

/// Keeps stacks for the next launch.
pub(super) fn keep(mut stacks: Vec<Stack>) {
    let mut spare = lock(&SPARE);
    spare.append(&mut stacks);
    spare.truncate(2048);
}
