//! The folder for a machine with a GPU, and the archive of it.
//!
//! It holds programs, packs, scripts, and the reference numbers that the tests on a device read,
//! where they are at hand. Nothing else is needed there but Python with PyTorch, whose wheels bring
//! NVIDIA's libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::build::Built;
use crate::command::{Step, say};
use crate::stage::stage_as;
use crate::workspace::Workspace;

/// What folder and archive are called.
pub(super) const NAME: &str = "oodbench-gpu";

/// The most that an archive may hold: it is to be carried.
const MOST_BYTES: u64 = 60 << 20;

/// Scripts of this checkout, and their place in the parcel.
const SCRIPTS: &[(&str, &str)] = &[
    ("xtask/gpu/run.sh", "run.sh"),
    ("xtask/python/gpu_libraries.py", "python/gpu_libraries.py"),
    ("xtask/python/gpu_ceilings.py", "python/gpu_ceilings.py"),
    ("xtask/python/gpu_networks.py", "python/gpu_networks.py"),
    ("xtask/python/gpu_speed.py", "python/gpu_speed.py"),
    ("xtask/python/gpu_training.py", "python/gpu_training.py"),
    ("xtask/python/gpu_detection.py", "python/gpu_detection.py"),
    ("xtask/python/gpu_table.py", "python/gpu_table.py"),
    ("xtask/python/speed.py", "python/speed.py"),
];

/// Reference numbers that tests on a device read, below `$OODBENCH_SHARED`.
const GOLDENS: &[&str] = &["golden/diffood/manifest.json", "golden/diffood/diffood.safetensors"];

/// Whether the reference numbers are at hand.
pub(super) fn has_goldens(workspace: &Workspace) -> bool {
    GOLDENS.iter().all(|name| workspace.shared.join(name).is_file())
}

/// A folder that is there.
pub(super) struct Filled {
    pub(super) folder: PathBuf,
    /// Whether it has become another one.
    changed: bool,
}

/// A parcel that is there.
pub(super) struct Made {
    pub(super) folder: PathBuf,
    pub(super) archive: PathBuf,
    pub(super) bytes: u64,
}

/// Brings the folder up to date, and the archive where anything in the folder has changed.
///
/// # Errors
/// When something is missing, cannot be written, or is larger than what can be carried.
pub(super) fn make(workspace: &Workspace, built: &[Built], to: &Path) -> anyhow::Result<Made> {
    let Filled { folder, changed } = fill(workspace, built, to)?;
    let archive = folder.with_extension("tar.xz");
    if changed || !archive.is_file() {
        say("packing");
        pack(&folder, &archive)?;
    }
    let bytes = size(&archive)?;
    if bytes > MOST_BYTES {
        bail!("`{}` expected at most {MOST_BYTES} bytes, got {bytes}", archive.display());
    }
    Ok(Made { folder, archive, bytes })
}

/// Brings the folder up to date.
///
/// # Errors
/// When something is missing or cannot be written.
pub(super) fn fill(workspace: &Workspace, built: &[Built], to: &Path) -> anyhow::Result<Filled> {
    let to = std::path::absolute(to).with_context(|| format!("find `{}`", to.display()))?;
    let folder = to.join(NAME);
    let goldens =
        GOLDENS.iter().map(|name| (workspace.shared.join(name), format!("shared/{name}")));
    let goldens: Vec<_> = if has_goldens(workspace) { goldens.collect() } else { Vec::new() };
    if goldens.is_empty() {
        say(&format!(
            "warning: no reference numbers in {}: tests against them are left out\n\n\
             hint: set OODBENCH_SHARED to the folder that holds `golden`",
            workspace.shared.display()
        ));
    }
    let scripts = SCRIPTS.iter().map(|(from, to)| (workspace.root.join(from), (*to).to_owned()));
    let mut changed = false;
    let mut stay = BTreeSet::new();
    for (from, to) in scripts.chain(goldens) {
        changed |= put(&from, &folder, &to)?;
        stay.insert(to);
    }
    for Built { from, to } in built {
        let stripped = stripped(from, &workspace.target)?;
        changed |= put(&stripped, &folder, to)?;
        stay.insert(to.clone());
    }
    changed |= write(&folder.join(ABOUT), &about(workspace)?)?;
    stay.insert(ABOUT.to_owned());
    changed |= clear(&folder, &folder, &stay)?;
    Ok(Filled { folder, changed })
}

/// The file that says what the parcel was made of.
const ABOUT: &str = "about.txt";

/// What the parcel was made of, a line each, to be kept beside what is measured with it.
fn about(workspace: &Workspace) -> anyhow::Result<String> {
    let git = |args: &[&str]| {
        let step = Step::new("git").args(args.iter().copied()).folder(&workspace.root);
        step.output().map_or(String::new(), |(_, text)| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"]);
    let changes = if git(&["status", "--porcelain"]).is_empty() { "" } else { " and changes" };
    let (_, compiler) = Step::new("rustc").arg("--version").output()?;
    let commit = if commit.is_empty() { "unknown".to_owned() } else { commit };
    Ok(format!("commit {commit}{changes}\n{}\n", compiler.trim()))
}

fn put(from: &Path, folder: &Path, to: &str) -> anyhow::Result<bool> {
    let path = folder.join(to);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("`{to}` expected the path of a file");
    };
    let changed = stage_as(from, parent, name)?;
    if changed {
        let permissions =
            fs::metadata(from).and_then(|of| fs::set_permissions(&path, of.permissions()));
        permissions.with_context(|| format!("set the permissions of `{}`", path.display()))?;
    }
    Ok(changed)
}

fn write(path: &Path, text: &str) -> anyhow::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    fs::write(path, text).with_context(|| format!("write `{}`", path.display()))?;
    Ok(true)
}

/// A copy without symbols, which are half of a program.
fn stripped(from: &Path, target: &Path) -> anyhow::Result<PathBuf> {
    let folder = target.join("gpu-stripped");
    fs::create_dir_all(&folder).with_context(|| format!("create `{}`", folder.display()))?;
    let to = folder.join(from.file_name().unwrap_or_default());
    let step = Step::new("strip").arg("-o").arg(&to).arg(from);
    match step.run()? {
        0 => Ok(to),
        code => bail!("`{step}` ended with {code}"),
    }
}

/// Removes what an earlier parcel had and this one has not.
fn clear(folder: &Path, root: &Path, stay: &BTreeSet<String>) -> anyhow::Result<bool> {
    let reading = || format!("read `{}`", folder.display());
    let mut changed = false;
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.is_dir() {
            changed |= clear(&path, root, stay)?;
            continue;
        }
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if !stay.contains(&name) {
            fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Packs the folder. The programs share most of their bytes, candle's kernels: a dictionary that
/// spans all of them stores these once.
fn pack(folder: &Path, archive: &Path) -> anyhow::Result<()> {
    let partial = archive.with_extension("partial");
    let (to, name) = (folder.parent().unwrap_or(folder), folder.file_name().unwrap_or_default());
    let step = Step::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-I"])
        .arg("xz -T1 --lzma2=preset=6,dict=384MiB")
        .arg("-cf")
        .arg(&partial)
        .arg("-C")
        .arg(to)
        .arg(name);
    match step.run()? {
        0 => {}
        code => bail!("`{step}` ended with {code}\n\nhint: it needs GNU tar, xz, and free disk"),
    }
    fs::rename(&partial, archive).with_context(|| format!("write `{}`", archive.display()))
}

fn size(path: &Path) -> anyhow::Result<u64> {
    let metadata = fs::metadata(path).with_context(|| format!("read `{}`", path.display()))?;
    Ok(metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_is_in_this_checkout_and_in_the_folder_once() {
        let root = Workspace::from_env().root;
        let mut places = BTreeSet::new();
        for (from, to) in SCRIPTS {
            assert!(root.join(from).is_file(), "{from}");
            assert!(places.insert(to), "{to}");
        }
        for golden in GOLDENS {
            assert!(golden.starts_with("golden/"), "{golden}");
        }
    }

    /// What the scripts call is in the parcel.
    #[test]
    fn the_script_starts_nothing_that_is_not_in_the_folder() {
        let root = Workspace::from_env().root;
        let script = fs::read_to_string(root.join("xtask/gpu/run.sh")).unwrap();
        let names: Vec<&str> = SCRIPTS.iter().map(|(_, to)| *to).collect();
        for name in ["gpu_libraries", "gpu_ceilings", "gpu_speed", "gpu_training", "gpu_detection"]
        {
            assert!(script.contains(&format!("{name}.py")), "{name}");
            assert!(names.contains(&format!("python/{name}.py").as_str()), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_follows_what_it_is_made_of() {
        use std::os::unix::fs::PermissionsExt;
        let scene = tempfile::tempdir().unwrap();
        let (from, folder) = (scene.path().join("from"), scene.path().join("to"));
        fs::write(&from, "one").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(put(&from, &folder, "bin/a").unwrap());
        assert!(!put(&from, &folder, "bin/a").unwrap());
        assert!(put(&from, &folder, "bin/b").unwrap());
        let mode = fs::metadata(folder.join("bin/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        let stay = BTreeSet::from(["bin/a".to_owned()]);
        assert!(clear(&folder, &folder, &stay).unwrap());
        assert!(!clear(&folder, &folder, &stay).unwrap());
        assert!(folder.join("bin/a").is_file() && !folder.join("bin/b").exists());
        assert!(write(&folder.join("about.txt"), "x\n").unwrap());
        assert!(!write(&folder.join("about.txt"), "x\n").unwrap());
    }
}
