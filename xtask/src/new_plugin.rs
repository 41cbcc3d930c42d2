//! `cargo xtask new-plugin NAME`: a detector pack of the user's own, in a folder outside of the
//! workspace, that builds, passes the check, and is found by the next bench.
//!
//! What it is made from is `plugins/example`, which is built and checked as it stands; see
//! [`crate::template`]. The folder goes onto the list that [`crate::own`] builds from.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use crate::command::{Step, say};
use crate::own;
use crate::template::{self, Names};
use crate::workspace::Workspace;

/// Exit codes, as the binary's: a command line that makes no sense, what cannot be written.
const USAGE: u8 = 2;
const WRITE_FAILED: u8 = 110;

/// What `new-plugin` was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) name: String,
    /// The folder to make, where it is not one called `name` beside the checkout.
    pub(crate) path: Option<PathBuf>,
}

/// Why a name or a folder will not do: what is wrong, and a remedy.
type Refusal = (String, &'static str);

/// Makes the folder and says what comes next; gives an exit code.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<u8> {
    let here = std::env::current_dir().context("find the current folder")?;
    match plan(workspace, options, &here)? {
        Ok((names, folder)) => make(workspace, &names, &folder, &here).or_else(|error| {
            say(&format!("error: {error:#}"));
            Ok(WRITE_FAILED)
        }),
        Err((message, hint)) => {
            say(&format!("error: {message}\n\nhint: {hint}"));
            Ok(USAGE)
        }
    }
}

/// The names of the new pack and its folder.
fn plan(
    workspace: &Workspace,
    options: &Options,
    here: &Path,
) -> anyhow::Result<Result<(Names, PathBuf), Refusal>> {
    let names = match Names::new(&options.name) {
        Ok(names) => names,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if let Some(owner) = owner(workspace, &names.id)? {
        let message = format!("name the plugin: `{}` is a detector of {owner}", names.id);
        return Ok(Err((message, "take another name: a bench finds a detector by its id")));
    }
    let root = workspace.root.canonicalize().context("find this checkout")?;
    let folder = match &options.path {
        Some(path) => here.join(path),
        None if here.starts_with(&root) => root.with_file_name(&names.id),
        None => here.join(&names.id),
    };
    let folder = canonical(&folder)?;
    let shown = folder.display();
    if folder.starts_with(&root) {
        let message = format!("make `{shown}`: it is inside of the checkout `{}`", root.display());
        return Ok(Err((
            message,
            "`--path DIR` names a folder outside, which can be a repository of its own",
        )));
    }
    let is_free = match fs::read_dir(&folder) {
        Ok(mut entries) => entries.next().is_none(),
        // What is in the way further up is said when the folder is made.
        Err(_) => fs::symlink_metadata(&folder).is_err(),
    };
    if !is_free {
        let message = format!(
            "make `{shown}`: expected a new or an empty folder, got one with something in it or a file"
        );
        return Ok(Err((message, "`--path DIR` names another one")));
    }
    Ok(Ok((names, folder)))
}

/// The absolute path without links and without `..`, of a folder that need not be there yet.
fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
        // Links are followed before a `..` behind them means anything.
        if plain.exists() {
            plain = plain.canonicalize().with_context(|| format!("find `{}`", plain.display()))?;
        }
    }
    Ok(plain)
}

/// Who has a detector with this id already: the table of detectors, or a folder of the list.
fn owner(workspace: &Workspace, id: &str) -> anyhow::Result<Option<String>> {
    let table = workspace.root.join("docs/detectors.md");
    let text = fs::read_to_string(&table).with_context(|| format!("read `{}`", table.display()))?;
    if text.lines().any(|line| line.starts_with(&format!("| `{id}` |"))) {
        return Ok(Some("oodbench".to_owned()));
    }
    for folder in own::folders(workspace)? {
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let package = format!("name = \"{id}\"");
        let is_named = read("Cargo.toml").lines().any(|line| line.trim() == package);
        if is_named || read("src/lib.rs").contains(&format!("id: \"{id}\"")) {
            return Ok(Some(format!("the plugin in `{}`", folder.display())));
        }
    }
    Ok(None)
}

/// Writes the folder beside its place and renames it when it is whole, then puts it on the list.
fn make(workspace: &Workspace, names: &Names, folder: &Path, here: &Path) -> anyhow::Result<u8> {
    let root = workspace.root.canonicalize().context("find this checkout")?;
    let target = canonical(&workspace.own_builds())?.join("build");
    let near = |to: &Path| text_of(&near(folder, to, &root));
    let files = template::files(names, &near(&root.join("plugins/sdk"))?, &near(&target)?);

    let parent =
        folder.parent().with_context(|| format!("find the folder of `{}`", folder.display()))?;
    let partial = parent.join(format!(".{}.{}.partial", names.id, std::process::id()));
    let written = write(&partial, &files)
        .with_context(|| format!("make `{}`", folder.display()))
        .and_then(|()| lock(workspace, &partial));
    let code = match written {
        Ok(0) => fs::rename(&partial, folder)
            .with_context(|| format!("make `{}`", folder.display()))
            .map(|()| 0),
        other => other,
    };
    if !matches!(code, Ok(0)) {
        // The error that is reported is the first one.
        let _ = fs::remove_dir_all(&partial);
        return code;
    }
    own::add(workspace, &text_of(&near_root(folder, &root))?)?;
    let shown = relative(here, folder).unwrap_or_else(|| folder.to_owned());
    let id = &names.id;
    say(&format!(
        "made {shown}, and put it on the list {list}\n\n\
         The detector is {source}. From the checkout of oodbench, which builds it:\n\n\
         \x20   cargo xtask plugin check {id}\n\
         \x20   cargo xtask bench --method {id},msp\n\n\
         docs/new-detector.md leads from a formula to its row in the leaderboard.",
        shown = shown.display(),
        list = relative(here, &workspace.own).unwrap_or_else(|| workspace.own.clone()).display(),
        source = shown.join("src/lib.rs").display(),
    ));
    Ok(0)
}

fn write(folder: &Path, files: &[(&str, String)]) -> anyhow::Result<()> {
    for (name, text) in files {
        let path = folder.join(name);
        let writing = || format!("write `{}`", path.display());
        let parent = path.parent().with_context(writing)?;
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, text)).with_context(writing)?;
    }
    Ok(())
}

/// Writes a `Cargo.lock` with the versions of the workspace, so that building the pack downloads
/// nothing that a build of the workspace has not; gives cargo's exit code.
fn lock(workspace: &Workspace, folder: &Path) -> anyhow::Result<u8> {
    let ours = workspace.root.join("Cargo.lock");
    fs::copy(&ours, folder.join("Cargo.lock"))
        .with_context(|| format!("copy `{}`", ours.display()))?;
    // Cargo takes out what the pack does not use, and leaves the rest as it is.
    Step::new(&workspace.cargo)
        .args(["update", "--workspace", "--offline", "--quiet"])
        .folder(folder)
        .run()
}

/// How a file of the folder names a path of the checkout: from the folder if both lie in one
/// place, so that they can be moved together, otherwise in full.
fn near(folder: &Path, to: &Path, root: &Path) -> PathBuf {
    beside(folder, root).then(|| relative(folder, to)).flatten().unwrap_or_else(|| to.to_owned())
}

/// How the list names the folder, likewise.
fn near_root(folder: &Path, root: &Path) -> PathBuf {
    beside(folder, root)
        .then(|| relative(root, folder))
        .flatten()
        .unwrap_or_else(|| folder.to_owned())
}

/// Whether the folder lies somewhere in the folder that holds the checkout.
fn beside(folder: &Path, root: &Path) -> bool {
    root.parent().is_some_and(|place| place.parent().is_some() && folder.starts_with(place))
}

/// The way from a folder to a path, where they share more than the root of the file system.
fn relative(from: &Path, to: &Path) -> Option<PathBuf> {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    if shared < 2 {
        return None;
    }
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(shared)).collect();
    Some(if way.as_os_str().is_empty() { ".".into() } else { way })
}

/// A path as it is written into a file.
fn text_of(path: &Path) -> anyhow::Result<String> {
    let text = OsString::from(path).into_string();
    text.map_err(|path| anyhow::anyhow!("write the path `{}`: expected UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_beside_the_checkout_is_named_from_there() {
        let root = Path::new("/home/me/oodbench");
        let sdk = root.join("plugins/sdk");
        let check = |folder: &str, expected: &str| {
            assert_eq!(near(Path::new(folder), &sdk, root), Path::new(expected), "{folder}");
        };
        check("/home/me/mine", "../oodbench/plugins/sdk");
        check("/home/me/a/b/mine", "../../../oodbench/plugins/sdk");
        check("/tmp/mine", "/home/me/oodbench/plugins/sdk");
        check("/home/you/mine", "/home/me/oodbench/plugins/sdk");
        let check = |folder: &str, expected: &str| {
            assert_eq!(near_root(Path::new(folder), root), Path::new(expected), "{folder}");
        };
        check("/home/me/mine", "../mine");
        check("/tmp/mine", "/tmp/mine");
        // The folder that holds the checkout is the root of all.
        assert_eq!(near_root(Path::new("/mine"), Path::new("/oodbench")), Path::new("/mine"));
    }

    #[test]
    fn ways_between_folders() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
        assert_eq!(way("/a/b", "/a/c/d"), Some("../c/d".into()));
        assert_eq!(way("/a/b", "/a/b/d"), Some("d".into()));
        assert_eq!(way("/a/b", "/a/b"), Some(".".into()));
        assert_eq!(way("/a/b", "/c/d"), None);
    }

    #[test]
    fn a_path_that_is_not_there_yet_is_made_plain() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("a")).unwrap();
        assert_eq!(canonical(&root.join("a/../b/./c")).unwrap(), root.join("b/c"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
            assert_eq!(canonical(&root.join("link/new")).unwrap(), root.join("a/new"));
            assert_eq!(canonical(&root.join("link/../new")).unwrap(), root.join("new"));
        }
    }

    #[test]
    fn names_and_folders_that_will_not_do_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let here = place.path().canonicalize().unwrap();
        let workspace = Workspace { own: here.join("own.txt"), ..Workspace::from_env() };
        let full = here.join("full");
        fs::create_dir_all(full.join("src")).unwrap();
        fs::write(full.join("Cargo.toml"), "[package]\nname = \"first\"\n").unwrap();
        fs::write(full.join("src/lib.rs"), "id: \"second\",\n").unwrap();
        own::add(&workspace, "/no/such/folder").unwrap();
        own::add(&workspace, full.to_str().unwrap()).unwrap();

        let check = |name: &str, path: Option<&str>, parts: &[&str]| {
            let options = Options { name: name.into(), path: path.map(PathBuf::from) };
            let (message, _) = plan(&workspace, &options, &here).unwrap().unwrap_err();
            for part in parts {
                assert!(message.contains(part), "expected `{part}` in `{message}`");
            }
        };
        check("Mine", None, &["lower-case", "`Mine`"]);
        check("knn", None, &["`knn` is a detector of oodbench"]);
        check("first", None, &["`first` is a detector of the plugin in", "full"]);
        check("second", None, &["`second` is a detector of the plugin in"]);
        check("full", None, &["make `", "something in it"]);
        check("mine", Some("own.txt"), &["own.txt`: expected a new or an empty folder"]);
        let inside = workspace.root.join("plugins/mine");
        check("mine", inside.to_str(), &["is inside of the checkout"]);

        let options = Options { name: "mine".into(), path: None };
        let (_, folder) = plan(&workspace, &options, &here).unwrap().unwrap();
        assert_eq!(folder, here.join("mine"));
        let (_, folder) = plan(&workspace, &options, &workspace.root).unwrap().unwrap();
        assert_eq!(folder, workspace.root.canonicalize().unwrap().with_file_name("mine"));
    }
}
