//! Packs outside of the workspace: `plugins/example`, and those of the user's own.
//!
//! The latter are a list of folders, `plugins/own.txt`: one a line, `#` begins a comment, relative
//! paths start at the root of the checkout. `cargo xtask new-plugin` adds to it. Before a bench
//! each of them is built and staged beside the packs that come with the binary, under a name that
//! begins with `own-`; a staged file of that kind that belongs to no folder of the list is removed,
//! so that what one takes off the list is gone from the next bench.
//!
//! A folder that has vanished is a warning. One that does not build ends the command: a bench would
//! otherwise show what an older build of it gives.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::command::{Step, say};
use crate::stage::stage_as;
use crate::workspace::{OUT_OF_TREE, Profile, Workspace};

/// What the names of staged files begin with.
const STAGED: &str = "own-";

/// The first lines of a new list.
const HEAD: &str = "\
# Folders of detector packs that `cargo xtask bench` and `cargo xtask plugin` build and stage, one a
# line. `cargo xtask new-plugin` adds to it; take out what you no longer want.
";

/// The folders of the list, in its order, each once; none where there is no list.
pub(crate) fn folders(workspace: &Workspace) -> anyhow::Result<Vec<PathBuf>> {
    let file = &workspace.own;
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
    let mut folders = Vec::new();
    for line in text.lines().map(str::trim) {
        let folder = workspace.root.join(line);
        if !line.is_empty() && !line.starts_with('#') && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    Ok(folders)
}

/// Puts a folder on the list, as `line` says it.
pub(crate) fn add(workspace: &Workspace, line: &str) -> anyhow::Result<()> {
    let file = &workspace.own;
    let writing = || format!("write `{}`", file.display());
    let mut text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("read `{}`", file.display())),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
    let name = file.file_name().with_context(writing)?.display();
    let partial = file.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(writing)?;
    }
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, file)).with_context(writing)
}

/// The command that builds the pack in `folder`. What packs have in common is compiled once, in a
/// folder that they share; the library itself lands in `out`.
fn build_step(workspace: &Workspace, folder: &Path, out: &Path, profile: Profile) -> Step {
    let step = Step::new(&workspace.cargo)
        .args(["build", "--quiet"])
        .args((profile == Profile::Release).then_some("--release"))
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(out)
        .env("CARGO_BUILD_BUILD_DIR", workspace.own_builds().join("build"));
    // The folder's own configuration of cargo holds.
    step.folder(folder)
}

/// Builds the pack in `folder`. Gives cargo's exit code, and the libraries that were built.
fn build(
    workspace: &Workspace,
    folder: &Path,
    profile: Profile,
    place: usize,
) -> anyhow::Result<(u8, Vec<PathBuf>)> {
    let name = folder.file_name().unwrap_or(folder.as_os_str()).display().to_string();
    // Two folders may have the same name.
    let out = workspace.own_builds().join("packs").join(format!("{place}-{name}"));
    let built = out.join(profile.folder());
    // What is there was left by an earlier build, perhaps of a library with another name. Cargo
    // puts its own back without compiling anything.
    for library in libraries(&built)? {
        fs::remove_file(&library).with_context(|| format!("remove `{}`", library.display()))?;
    }
    use_our_versions(workspace, folder)?;
    let step = build_step(workspace, folder, &out, profile);
    if !built.exists() {
        say(&format!("building {name}"));
    }
    let code = step.run()?;
    let libraries = if code == 0 { libraries(&built)? } else { Vec::new() };
    Ok((code, libraries))
}

/// Where a folder has no `Cargo.lock`, the versions of the workspace hold, which are there already:
/// nothing has to be downloaded. Cargo drops from it what the pack does not use.
fn use_our_versions(workspace: &Workspace, folder: &Path) -> anyhow::Result<()> {
    let lock = folder.join("Cargo.lock");
    if !lock.exists() {
        fs::copy(workspace.root.join("Cargo.lock"), &lock)
            .with_context(|| format!("write `{}`", lock.display()))?;
    }
    Ok(())
}

/// The dynamic libraries of a folder; none where there is no such folder.
fn libraries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_library = |path: &PathBuf| {
        path.is_file() && path.to_string_lossy().ends_with(std::env::consts::DLL_SUFFIX)
    };
    Ok(entries(folder)?.into_iter().filter(is_library).collect())
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let reading = || format!("read `{}`", folder.display());
    let paths: std::io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).with_context(reading)?.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.with_context(reading)?;
    paths.sort();
    Ok(paths)
}

/// Builds and stages every pack of the list for the profile in use; gives cargo's exit code.
pub(crate) fn build_and_stage(workspace: &Workspace) -> anyhow::Result<u8> {
    let profile = workspace.profile;
    let packs = workspace.staged_packs(profile);
    let list = workspace.own.display();
    let mut staged = BTreeSet::<OsString>::new();
    for (place, folder) in folders(workspace)?.iter().enumerate() {
        if !folder.join("Cargo.toml").is_file() {
            say(&format!("warning: no `{}`: take it off the list `{list}`", folder.display()));
            continue;
        }
        let (code, libraries) = build(workspace, folder, profile, place)?;
        if code != 0 {
            say(&format!(
                "error: the plugin in `{}` does not build\n\n\
                 hint: to go on without it, take it off the list `{list}`",
                folder.display()
            ));
            return Ok(code);
        }
        if libraries.is_empty() {
            anyhow::bail!(
                "build the plugin in `{}`: expected a library, got none\n\n\
                 hint: its `Cargo.toml` needs `crate-type = [\"cdylib\"]` under `[lib]`",
                folder.display()
            );
        }
        for library in &libraries {
            let mut name = OsString::from(STAGED);
            name.push(library.file_name().unwrap_or_default());
            stage_as(library, &packs, &name)?;
            if !staged.insert(name) {
                anyhow::bail!(
                    "stage the plugin in `{}`: another one of the list `{list}` builds `{}`, too",
                    folder.display(),
                    library.file_name().unwrap_or_default().display()
                );
            }
        }
    }
    unstage(&packs, &staged)?;
    Ok(0)
}

/// Builds the packs under `plugins/` that are no members of the workspace, as a third party's;
/// gives cargo's exit code, and the libraries.
pub(crate) fn build_examples(
    workspace: &Workspace,
    profile: Profile,
) -> anyhow::Result<(u8, Vec<PathBuf>)> {
    let mut built = Vec::new();
    for name in OUT_OF_TREE {
        let folder = workspace.root.join("plugins").join(name);
        let (code, libraries) = build(workspace, &folder, profile, 0)?;
        if code != 0 {
            return Ok((code, Vec::new()));
        }
        built.extend(libraries);
    }
    Ok((0, built))
}

/// Removes every staged pack of the user's own, for tests that count on those of the workspace.
pub(crate) fn unstage_all(workspace: &Workspace, profile: Profile) -> anyhow::Result<()> {
    unstage(&workspace.staged_packs(profile), &BTreeSet::new())
}

/// Removes staged packs of the user's own, but for those that are to stay.
fn unstage(packs: &Path, stay: &BTreeSet<OsString>) -> anyhow::Result<()> {
    for path in entries(packs)? {
        let name = path.file_name().unwrap_or_default();
        if name.to_string_lossy().starts_with(STAGED) && !stay.contains(name) {
            fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_list(folder: &Path) -> Workspace {
        Workspace { own: folder.join("lists/own.txt"), ..Workspace::example() }
    }

    #[test]
    fn a_list_begins_with_what_it_is_and_keeps_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = with_list(folder.path());
        assert!(folders(&workspace).unwrap().is_empty());
        add(&workspace, "../one").unwrap();
        fs::write(&workspace.own, fs::read_to_string(&workspace.own).unwrap() + "# two\n/two")
            .unwrap();
        add(&workspace, "../one").unwrap();
        add(&workspace, "/three").unwrap();
        let text = fs::read_to_string(&workspace.own).unwrap();
        assert_eq!(text, format!("{HEAD}../one\n# two\n/two\n../one\n/three\n"));
        let found = folders(&workspace).unwrap();
        assert_eq!(found, ["/repo/../one", "/two", "/three"].map(PathBuf::from));
    }

    #[test]
    fn packs_share_what_they_compile_and_not_where_they_land() {
        let workspace = Workspace::example();
        let step = build_step(&workspace, Path::new("/a/mine"), Path::new("/t"), Profile::Release);
        assert_eq!(
            step.to_string(),
            "CARGO_BUILD_BUILD_DIR=/repo/target/own/build cargo build --quiet --release \
             --manifest-path /a/mine/Cargo.toml --target-dir /t"
        );
        let step = build_step(&workspace, Path::new("/a/mine"), Path::new("/t"), Profile::Dev);
        assert!(!step.to_string().contains("--release"), "{step}");
    }

    #[test]
    fn what_is_on_the_list_no_more_is_not_staged_any_longer() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libposthoc.so", "own-liba.so", "own-libb.so"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        unstage(folder.path(), &BTreeSet::from(["own-libb.so".into()])).unwrap();
        let left = entries(folder.path()).unwrap();
        let names: Vec<_> = left.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["libposthoc.so", "own-libb.so"]);
    }
}
