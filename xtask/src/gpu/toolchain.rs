//! What a build for GPUs needs beside cargo: `nvcc`, and libraries to link against.
//!
//! NVIDIA publishes the compiler as Python wheels, so that `pip` is enough to have it: 271 MB,
//! without a driver, without root. An `nvcc` on the `PATH` is used instead where there is one.
//! Everything is kept in the user's cache folder, apart from any checkout.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::shim;
use crate::command::{Step, say};
use crate::workspace::Workspace;

/// The wheels, all of CUDA 13.0. A driver runs what a compiler of its own version or an older one
/// made: 13.0 runs with every driver since 580. cudarc 0.19 knows CUDA up to 13.4.
const WHEELS: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// The newest CUDA whose code a driver 580 takes.
const NEWEST: (u32, u32) = (13, 0);

/// The generation that is built for where the environment names none: Hopper, H100 and H200.
const CAPABILITY: &str = "90";

/// Variables that would have cudarc look elsewhere.
const NOT_OURS: &[&str] =
    &["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB"];

/// A compiler and libraries that are there.
#[derive(Clone, Debug)]
pub(super) struct Toolchain {
    /// The folder of `nvcc`, where it is not on the `PATH` already.
    bin: Option<PathBuf>,
    /// Where the linker looks, in this order.
    libraries: Vec<PathBuf>,
}

/// The user's folder for what is fetched and made once.
///
/// # Errors
/// When the environment names no such folder.
pub(super) fn cache() -> anyhow::Result<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    cache_of(&of)
}

fn cache_of(of: &dyn Fn(&str) -> Option<OsString>) -> anyhow::Result<PathBuf> {
    let folder = of("OODBENCH_CACHE_DIR")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(of("XDG_CACHE_HOME")?).join("oodbench")))
        .or_else(|| Some(PathBuf::from(of("HOME")?).join(".cache/oodbench")));
    let folder = folder.context(
        "find a folder to keep the CUDA compiler in: neither HOME nor XDG_CACHE_HOME is set\n\n\
         hint: set OODBENCH_CACHE_DIR",
    )?;
    Ok(folder.join("cuda"))
}

impl Toolchain {
    /// Finds or fetches everything, once: what is there is kept.
    ///
    /// # Errors
    /// When something is missing that cannot be fetched; the message says what to install.
    pub(super) fn ready(workspace: &Workspace) -> anyhow::Result<Self> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("a build for GPUs needs Linux on x86-64");
        }
        for (program, what) in [("cc", "a C compiler"), ("ar", "binutils")] {
            if !starts(program, "--version") {
                bail!("start `{program}`: not found\n\nhint: install {what}, such as gcc");
            }
        }
        let cache = cache()?;
        let shims = cache.join("shim");
        let (bin, runtime) = match nvcc_version("nvcc".as_ref()) {
            Some(version) => {
                say(&format!("nvcc {}.{} is on the PATH", version.0, version.1));
                if version > NEWEST {
                    say(&format!(
                        "warning: code of CUDA {}.{} needs a driver at least as new",
                        version.0, version.1
                    ));
                }
                (None, None)
            }
            None => {
                let root = fetched(&cache)?;
                (Some(root.join("bin")), Some(root.join("lib/static")))
            }
        };
        shim::write(&cudarc(workspace)?, &shims)?;
        say(&format!("libraries to link against are in {}", shims.display()));
        Ok(Self { bin, libraries: std::iter::once(shims).chain(runtime).collect() })
    }

    /// A step in the environment of this toolchain.
    pub(super) fn environment(&self, step: Step) -> Step {
        let joined = |first: &[PathBuf], name: &str| {
            let rest = std::env::var_os(name).unwrap_or_default();
            let rest = std::env::split_paths(&rest).filter(|path| !path.as_os_str().is_empty());
            std::env::join_paths(first.iter().cloned().chain(rest)).unwrap_or_default()
        };
        let mut step = step.env("LIBRARY_PATH", joined(&self.libraries, "LIBRARY_PATH"));
        if let Some(bin) = &self.bin {
            step = step.env("PATH", joined(std::slice::from_ref(bin), "PATH"));
        }
        for name in NOT_OURS {
            step = step.without(name);
        }
        let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        step.env("CUDA_COMPUTE_CAP", given("CUDA_COMPUTE_CAP").unwrap_or(CAPABILITY.into()))
            // Half the size, and read once at start.
            .env(
                "NVCC_APPEND_FLAGS",
                given("NVCC_APPEND_FLAGS").unwrap_or("--compress-mode=size".into()),
            )
    }
}

fn starts(program: &str, arg: &str) -> bool {
    let mut command = std::process::Command::new(program);
    let null = std::process::Stdio::null;
    command.arg(arg).stdout(null()).stderr(null()).status().is_ok_and(|status| status.success())
}

/// The version that a compiler says it has.
fn nvcc_version(nvcc: &Path) -> Option<(u32, u32)> {
    let output = std::process::Command::new(nvcc).arg("--version").output().ok()?;
    version_of(&String::from_utf8_lossy(&output.stdout))
}

/// Out of a line such as `Cuda compilation tools, release 13.0, V13.0.88`.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("release ")?;
    let (version, _) = rest.split_once(',')?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The root of the compiler from the wheels, fetched if it is not there. What `pip` left half
/// finished is not taken: the folder gets its name when it is whole.
fn fetched(cache: &Path) -> anyhow::Result<PathBuf> {
    let folder = cache.join(format!("toolchain-{}.{}", NEWEST.0, NEWEST.1));
    let root = folder.join("nvidia/cu13");
    if nvcc_version(&root.join("bin/nvcc")).is_some() {
        say(&format!("nvcc {}.{} is in {}", NEWEST.0, NEWEST.1, folder.display()));
        return Ok(root);
    }
    let python = ["python3", "python"].into_iter().find(|python| {
        let mut command = std::process::Command::new(python);
        let null = std::process::Stdio::null;
        let status =
            command.args(["-m", "pip", "--version"]).stdout(null()).stderr(null()).status();
        status.is_ok_and(|status| status.success())
    });
    let Some(python) = python else {
        bail!(
            "fetch the CUDA compiler: no Python with pip\n\n\
             hint: install `python3-pip`, or NVIDIA's CUDA toolkit with `nvcc` on the PATH"
        );
    };
    say("fetching nvcc of CUDA 13.0 with pip: 271 MB, once");
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("clear `{}`", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("create `{}`", partial.display()))?;
    let step = Step::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--root-user-action=ignore", "--no-deps", "--only-binary=:all:", "--target"])
        .arg(&partial)
        .args(WHEELS.iter().copied());
    match step.run()? {
        0 => {}
        code => bail!(
            "fetch the CUDA compiler: `pip` ended with {code}\n\n\
             hint: it needs the network once, and 400 MB in `{}`",
            cache.display()
        ),
    }
    // candle links `cudart`; the wheels have it under the name of the static library alone.
    let partial_root = partial.join("nvidia/cu13");
    let lib = partial_root.join("lib/static");
    fs::create_dir_all(&lib)
        .and_then(|()| link("../libcudart_static.a", &lib.join("libcudart.a")))
        .and_then(|()| link("lib", &partial_root.join("lib64")))
        .with_context(|| format!("complete `{}`", partial.display()))?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("clear `{}`", folder.display()))?;
    }
    fs::rename(&partial, &folder).with_context(|| format!("name `{}`", folder.display()))?;
    if nvcc_version(&root.join("bin/nvcc")).is_none() {
        bail!(
            "start `{}`: the fetched compiler does not run here",
            root.join("bin/nvcc").display()
        );
    }
    Ok(root)
}

/// A symbolic link, unless something of that name came with the wheels.
fn link(to: &str, at: &Path) -> std::io::Result<()> {
    if at.exists() {
        return Ok(());
    }
    #[cfg(unix)]
    return std::os::unix::fs::symlink(to, at);
    #[cfg(not(unix))]
    return Err(std::io::Error::other(format!("no symbolic links here, for `{to}`")));
}

/// The folder of cudarc's sources, which cargo fetches if need be.
fn cudarc(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let step = Step::new(&workspace.cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu", "--features", "oodbench/cuda"])
        .folder(&workspace.root);
    let (code, text) = step.output()?;
    if code != 0 {
        bail!("`{step}` ended with {code}");
    }
    cudarc_of(&text).context("find cudarc among the dependencies: `cargo metadata` has it not")
}

/// The folder of the sources out of what `cargo metadata` says.
fn cudarc_of(metadata: &str) -> Option<PathBuf> {
    let paths = metadata.split("\"manifest_path\":\"").skip(1);
    let mut paths = paths.filter_map(|rest| rest.split_once('"')).map(|(path, _)| path);
    let manifest = paths.find(|path| {
        let folder = Path::new(path).parent().and_then(Path::file_name);
        folder.is_some_and(|name| name.to_string_lossy().starts_with("cudarc-"))
    })?;
    Some(Path::new(manifest).parent()?.join("src"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_off_what_the_compiler_says() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\n\
                    Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0\n";
        assert_eq!(version_of(text), Some((13, 0)));
        assert_eq!(version_of("no compiler"), None);
        assert!((13, 1) > NEWEST && (12, 9) < NEWEST);
    }

    #[test]
    fn wheels_are_pinned_to_one_version_of_cuda() {
        for wheel in WHEELS {
            let (name, version) = wheel.split_once("==").unwrap();
            assert!(name.starts_with("nvidia-") && version.starts_with("13.0."), "{wheel}");
        }
    }

    #[test]
    fn the_cache_is_the_users() {
        let cache = |set: &[(&str, &str)]| {
            let of = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            cache_of(&of)
        };
        assert_eq!(cache(&[("HOME", "/h")]).unwrap(), Path::new("/h/.cache/oodbench/cuda"));
        let set = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x")];
        assert_eq!(cache(&set).unwrap(), Path::new("/x/oodbench/cuda"));
        let set = [("XDG_CACHE_HOME", "/x"), ("OODBENCH_CACHE_DIR", "/o")];
        assert_eq!(cache(&set).unwrap(), Path::new("/o/cuda"));
        assert!(format!("{:#}", cache(&[]).unwrap_err()).contains("hint: "));
    }

    #[test]
    fn cudarc_is_found_among_the_dependencies() {
        let text = r#"{"packages":[{"name":"x","manifest_path":"/r/x-1.0/Cargo.toml"},
            {"name":"cudarc","manifest_path":"/r/cudarc-0.19.10/Cargo.toml"}]}"#;
        assert_eq!(cudarc_of(text).unwrap(), Path::new("/r/cudarc-0.19.10/src"));
        assert_eq!(cudarc_of("{}"), None);
    }

    #[test]
    fn a_build_sees_this_toolchain_and_no_other() {
        let toolchain = Toolchain {
            bin: Some("/c/bin".into()),
            libraries: vec!["/c/shim".into(), "/c/static".into()],
        };
        let line = toolchain.environment(Step::new("cargo").arg("build")).to_string();
        for part in ["LIBRARY_PATH=/c/shim:/c/static", "PATH=/c/bin:", "-u CUDA_HOME"] {
            assert!(line.contains(part), "no `{part}` in {line}");
        }
        assert!(line.ends_with(" cargo build"), "{line}");
    }
}
