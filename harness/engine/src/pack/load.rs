//! Opening a pack: the file's kind, the epoch, the layout, then what it exports.
//!
//! The only `unsafe` of the engine's plugin side stands here.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::Library;
use oodbench_abi::abi_stable::library::{LibraryError, lib_header_from_path};
use oodbench_abi::abi_stable::std_types::{RResult, RStr, RString};
use oodbench_abi::{
    BUILT_FOR_SYMBOL, DetectorBox, EPOCH, EPOCH_SYMBOL, HostBox, PackRef, RawError,
};

use super::describe::{DetectorInfo, PackSummary};
use super::error::PackError;
use super::file_kind;

/// An open pack. It stays loaded until the process ends.
#[derive(Clone)]
pub struct Pack {
    root: PackRef,
    info: PackInfo,
}

/// Which pack it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// Name of the crate.
    pub name: String,
    /// Version of the crate.
    pub version: String,
    /// Version of the SDK that it was built with.
    pub sdk_version: String,
    /// The file, absolute.
    pub path: PathBuf,
    /// BLAKE3 hash of the file, hexadecimal.
    pub blake3: String,
    /// What it computes on.
    pub built_for: String,
}

impl Pack {
    /// Opens the pack at `path`. This runs the library's constructors: open what is not trusted
    /// in a process of its own.
    ///
    /// # Errors
    /// See [`PackError`], in the order of its variants.
    pub fn open(path: &Path) -> Result<Self, PackError> {
        let unreadable = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => PackError::Missing { path: path.to_owned() },
            _ => PackError::Unreadable { path: path.to_owned(), source },
        };
        // A bare file name would make the system's loader search its own folders.
        let absolute = path.canonicalize().map_err(unreadable)?;
        let mut file = File::open(&absolute).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(not_a_library(path, "a folder"));
        }
        if let Some(got) = file_kind::problem(&mut file).map_err(unreadable)? {
            return Err(not_a_library(path, &got));
        }
        let blake3 = hash(&absolute).map_err(unreadable)?;
        let got = read_epoch(path, &absolute)?;
        if got != EPOCH {
            return Err(PackError::Epoch { path: path.to_owned(), expected: EPOCH, got });
        }
        let root = root_module(path, &absolute)?;
        let info = (root.info())();
        let info = PackInfo {
            name: info.name.into(),
            version: info.version.into(),
            sdk_version: info.sdk_version.into(),
            built_for: built_for(path, &absolute)?,
            path: absolute,
            blake3,
        };
        Ok(Self { root, info })
    }

    /// Which pack it is.
    pub fn info(&self) -> &PackInfo {
        &self.info
    }

    /// The detectors that it exports.
    ///
    /// # Errors
    /// [`PackError::Descriptors`]: descriptors that it cannot give or that cannot be read, none
    /// at all, or two of the same id.
    pub fn descriptors(&self) -> Result<Vec<DetectorInfo>, PackError> {
        let refuse =
            |problem: String| PackError::Descriptors { path: self.info.path.clone(), problem };
        let raw = match (self.root.descriptors())() {
            RResult::ROk(raw) => raw,
            RResult::RErr(err) => return Err(refuse(one_line(&err.message))),
        };
        let detectors: Result<Vec<_>, String> = raw.iter().map(DetectorInfo::read).collect();
        let detectors = detectors.map_err(refuse)?;
        if detectors.is_empty() {
            return Err(refuse("it exports no detector".to_owned()));
        }
        for (i, detector) in detectors.iter().enumerate() {
            if detectors[..i].iter().any(|other| other.id == detector.id) {
                return Err(refuse(format!("it exports two detectors `{}`", detector.id)));
            }
        }
        Ok(detectors)
    }

    /// Everything about it that is known without running it.
    ///
    /// # Errors
    /// Those of [`Pack::descriptors`].
    pub fn summary(&self) -> Result<PackSummary, PackError> {
        let PackInfo { name, version, sdk_version, path, blake3, built_for } = self.info.clone();
        let detectors = self.descriptors()?;
        Ok(PackSummary { name, version, sdk_version, path, blake3, built_for, detectors })
    }

    /// Makes a detector from its parameters as a JSON object; absent ones take their defaults.
    ///
    /// # Errors
    /// What the pack says: an id that it does not have, parameters that are unknown or out of range.
    pub fn create(&self, id: &str, params: &str, host: HostBox) -> Result<DetectorBox, RawError> {
        (self.root.create())(RStr::from(id), RStr::from(params), host).into_result()
    }
}

fn not_a_library(path: &Path, got: &str) -> PackError {
    let (path, got) = (path.to_owned(), got.to_owned());
    PackError::NotALibrary { path, expected: file_kind::expected(), got }
}

fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The text of a foreign error, on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The epoch that a library says it was built for.
fn read_epoch(path: &Path, absolute: &Path) -> Result<u32, PackError> {
    // SAFETY: the library's constructors run. They are the author's code, which the user asked to
    // load; a worker process is what keeps faults in them from the host.
    let library = unsafe { Library::new(absolute) }.map_err(|err| {
        // The loader puts the path before its reason, and so do we.
        let reason =
            std::error::Error::source(&err).map_or_else(|| err.to_string(), |e| e.to_string());
        let reason = one_line(&reason);
        let prefix = format!("{}: ", absolute.display());
        let reason = reason.strip_prefix(&prefix).unwrap_or(&reason).to_owned();
        PackError::Open { path: path.to_owned(), reason }
    })?;
    // Never closed: threads and thread-locals of a library may outlive every handle to it.
    let library = ManuallyDrop::new(library);
    // SAFETY: the symbol is read as an address alone, which is what every symbol is.
    let symbol = unsafe { library.get::<*const u32>(EPOCH_SYMBOL) };
    let address = match symbol {
        Ok(symbol) if !symbol.is_null() => *symbol,
        _ => return Err(PackError::NotAPack { path: path.to_owned() }),
    };
    // SAFETY: the address lies in the library, which stays mapped. The ABI says that four bytes of
    // a `u32` are there; nothing is assumed of its alignment.
    Ok(unsafe { address.read_unaligned() })
}

/// What the pack says that it computes on. Its types have been compared by now.
fn built_for(path: &Path, absolute: &Path) -> Result<String, PackError> {
    // SAFETY: the library is open already, so that no constructor runs.
    let library = unsafe { Library::new(absolute) }.map_err(|err| PackError::Open {
        path: path.to_owned(),
        reason: one_line(&err.to_string()),
    })?;
    let library = ManuallyDrop::new(library);
    // SAFETY: the ABI says which type the function of this name has.
    let symbol = unsafe { library.get::<extern "C" fn() -> RString>(BUILT_FOR_SYMBOL) };
    Ok(symbol.map_or_else(|_| "CPU".to_owned(), |built_for| one_line(&built_for())))
}

/// The module behind the header, after abi_stable has compared the layout of every type.
///
/// `RootModule::load_from_file` is no choice: it keeps one module for each *type*, and would hand
/// back the first pack for every later path.
fn root_module(path: &Path, absolute: &Path) -> Result<PackRef, PackError> {
    let refuse = |problem: &'static str, details: String| PackError::Layout {
        path: path.to_owned(),
        epoch: EPOCH,
        problem,
        details,
    };
    let header = lib_header_from_path(absolute).map_err(|err| {
        let problem = match err {
            LibraryError::GetSymbolError { .. } => "it has no root module",
            LibraryError::InvalidAbiHeader(_) => "with another version of abi_stable",
            LibraryError::InvalidCAbi { .. } => "with a compiler of another calling convention",
            _ => "its header cannot be read",
        };
        refuse(problem, err.to_string())
    })?;
    // Without a layout abi_stable would skip the comparison.
    if header.layout().is_none() {
        return Err(refuse("it does not say how its types are laid out", String::new()));
    }
    header.init_root_module::<PackRef>().map_err(|err| {
        let problem = match err {
            LibraryError::AbiInstability(_) => "its types are laid out differently",
            LibraryError::RootModule { .. } => "its root module cannot be made",
            _ => "its version does not fit",
        };
        refuse(problem, err.to_string())
    })
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Builds a library of this source with the compiler that built the test.
    fn library(folder: &Path, source: &str) -> PathBuf {
        let (file, library) = (folder.join("source.rs"), folder.join("library.so"));
        std::fs::write(&file, source).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(rustc);
        command.args(["--edition=2024", "--crate-type=cdylib", "-Cprefer-dynamic=no", "-o"]);
        assert!(command.arg(&library).arg(&file).status().unwrap().success());
        library
    }

    /// How a library of this source is refused, without its path.
    fn refusal(source: &str) -> (PackError, String) {
        let folder = tempfile::tempdir().unwrap();
        refusal_of(&library(folder.path(), source))
    }

    fn refusal_of(path: &Path) -> (PackError, String) {
        let error = Pack::open(path).err().unwrap();
        let text = error.to_string();
        let prefix = format!("load pack `{}`: ", path.display());
        let reason = text.strip_prefix(&prefix).unwrap_or_else(|| panic!("{text}")).to_owned();
        (error, reason)
    }

    fn with_epoch(epoch: u32) -> String {
        format!("#[unsafe(no_mangle)] pub static {EPOCH_SYMBOL}: u32 = {epoch};")
    }

    #[test]
    fn another_epoch_is_refused_with_one_line() {
        let (older, text) = refusal(&with_epoch(0));
        assert_eq!(text, format!("built for ABI epoch 0, this host speaks {EPOCH}"));
        assert!(older.hint().unwrap().starts_with("build the pack again"));
        let (newer, _) = refusal(&with_epoch(EPOCH + 1));
        assert!(newer.hint().unwrap().starts_with("update oodbench"));
    }

    #[test]
    fn a_library_of_somebody_else_is_no_pack() {
        let (error, text) = refusal("#[unsafe(no_mangle)] pub static SOMETHING: u32 = 1;");
        assert_eq!(text, "this shared library is not an oodbench pack");
        assert!(error.is_foreign());
    }

    #[test]
    fn an_epoch_alone_makes_no_pack() {
        let (error, text) = refusal(&with_epoch(EPOCH));
        assert_eq!(text, format!("built for ABI epoch {EPOCH}, but it has no root module"));
        assert!(!error.is_foreign(), "it says that it is one of ours");
        assert!(error.details().is_some());
    }

    #[test]
    fn files_that_are_no_library_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("words.so");
        std::fs::write(&file, "only words\n").unwrap();
        let (error, text) = refusal_of(&file);
        assert!(text.ends_with(", got a text file"), "{text}");
        assert!(error.is_foreign());
        let (_, text) = refusal_of(folder.path());
        assert!(text.ends_with(", got a folder"), "{text}");
        let (_, text) = refusal_of(&folder.path().join("nothing.so"));
        assert_eq!(text, "no such file");
    }

    #[test]
    fn a_truncated_library_is_refused_before_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = library(folder.path(), &with_epoch(EPOCH));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let (_, text) = refusal_of(&path);
        assert!(text.ends_with(", got a truncated ELF file") || cfg!(target_vendor = "apple"));
    }
}
