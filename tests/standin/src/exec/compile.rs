//! From C to a function in this process, through the system's compiler and a cache folder.

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, c_char, c_int, c_void};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::launch::{Context, Thread};
use crate::api::{Outcome, refusal};
use crate::driver::codes::OPERATING_SYSTEM;
use crate::ptx::Translation;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Runs one thread, or a whole grid where threads never wait for each other.
pub(super) type Entry = unsafe extern "C" fn(*mut Context, *mut Thread);

/// A kernel that is ready to run. Its library stays loaded for good.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(super) grid: Entry,
    pub(super) thread: Entry,
    pub(crate) shared: usize,
    pub(crate) local: usize,
    pub(super) meets: bool,
    pub(super) sites: usize,
}

/// Contraction would make another number of `a * b + c`; the compiler must leave it alone.
const FLAGS: &[&str] = &[
    "-O1",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-shared",
    "-fPIC",
    "-w",
];

fn cache() -> PathBuf {
    std::env::var_os("STANDIN_CACHE")
        .map_or_else(|| std::env::temp_dir().join("oodbench-standin"), PathBuf::from)
}

fn failed(what: &str, error: impl std::fmt::Display) -> crate::api::Refusal {
    refusal(OPERATING_SYSTEM, format!("{what}: {error}"))
}

/// The library of a source text, compiled unless it is in the cache.
fn library(name: &str, source: &str) -> Outcome<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (FLAGS, source).hash(&mut hasher);
    let short: String = name.chars().take(60).collect();
    let folder = cache();
    let path = folder.join(format!("{short}-{:016x}.so", hasher.finish()));
    if path.is_file() {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder).map_err(|error| failed("make the cache folder", error))?;
    // Threads and processes may compile the same kernel; each has files of its own.
    let unique = format!("{short}-{}-{:?}", std::process::id(), std::thread::current().id());
    let unique: String =
        unique.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
    let text = folder.join(format!("{unique}.c"));
    let made = folder.join(format!("{unique}.so"));
    std::fs::write(&text, source).map_err(|error| failed("write a kernel's source", error))?;
    let output = Command::new("cc").args(FLAGS).arg("-o").arg(&made).arg(&text).arg("-lm").output();
    let output = output.map_err(|error| failed("run `cc`", error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let first: Vec<&str> = said.lines().take(6).collect();
        let line = format!("`cc` refuses `{}`: {}", text.display(), first.join(" / "));
        return Err(refusal(OPERATING_SYSTEM, line));
    }
    std::fs::rename(&made, &path).map_err(|error| failed("keep a kernel's library", error))?;
    std::fs::remove_file(&text).map_err(|error| failed("remove a kernel's source", error))?;
    Ok(path)
}

fn symbol(library: *mut c_void, path: &Path, name: &str) -> Outcome<Entry> {
    let c_name = CString::new(name).expect("a name without a null byte");
    // SAFETY: the library is loaded; the name is a C string.
    let found = unsafe { dlsym(library, c_name.as_ptr()) };
    if found.is_null() {
        return Err(failed(&format!("find `{name}` in `{}`", path.display()), "it is not there"));
    }
    // SAFETY: the translation defines both entries with this type.
    Ok(unsafe { std::mem::transmute::<*mut c_void, Entry>(found) })
}

impl Kernel {
    /// Compiles and loads a translation.
    ///
    /// # Errors
    /// The compiler or the loader fails.
    pub(crate) fn load(name: &str, translation: &Translation) -> Outcome<Self> {
        const NOW: c_int = 2;
        let path = library(name, &translation.source)?;
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|error| failed("name a kernel's library", error))?;
        // SAFETY: the library was just compiled from our own translation and runs no code on
        // loading.
        let library = unsafe { dlopen(c_path.as_ptr(), NOW) };
        if library.is_null() {
            return Err(failed(&format!("load `{}`", path.display()), "the loader refuses"));
        }
        Ok(Self {
            name: name.into(),
            grid: symbol(library, &path, "standin_grid")?,
            thread: symbol(library, &path, "standin_thread")?,
            shared: translation.shared,
            local: translation.local,
            meets: translation.meets,
            sites: translation.sites,
        })
    }
}
