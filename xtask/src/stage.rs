//! Puts packs where the binary looks for them.
//!
//! A running bench maps its packs, so a file is never written in place: a copy is renamed over it,
//! and only when the content differs, because the pack's content is part of every cell's key and
//! its time of change tells a user whether anything happened.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::Context;

/// Copies `from` into `folder` under the same name. Says whether anything changed.
pub(crate) fn stage(from: &Path, folder: &Path) -> anyhow::Result<bool> {
    let name =
        from.file_name().with_context(|| format!("expected a file, got `{}`", from.display()))?;
    stage_as(from, folder, name)
}

/// Copies `from` into `folder` under the name `name`. Says whether anything changed.
pub(crate) fn stage_as(from: &Path, folder: &Path, name: &OsStr) -> anyhow::Result<bool> {
    let to = folder.join(name);
    let new = fs::read(from).with_context(|| format!("read `{}`", from.display()))?;
    if fs::read(&to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    fs::create_dir_all(folder).with_context(|| format!("create `{}`", folder.display()))?;
    // Two builds at once must not write into one file. The ending keeps it from being a pack.
    let partial = folder.join(format!("{}.{}.partial", name.display(), std::process::id()));
    let done = fs::write(&partial, new).and_then(|()| fs::rename(&partial, &to));
    if done.is_err() {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&partial);
    }
    done.with_context(|| format!("write `{}`", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_replaced_by_rename_and_only_when_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (built, packs) = (folder.path().join("libx.so"), folder.path().join("packs"));
        fs::write(&built, "one").unwrap();
        assert!(stage(&built, &packs).unwrap());
        assert!(!stage(&built, &packs).unwrap());

        let open = fs::File::open(packs.join("libx.so")).unwrap();
        fs::write(&built, "two").unwrap();
        assert!(stage(&built, &packs).unwrap());
        assert_eq!(std::io::read_to_string(open).unwrap(), "one");
        assert_eq!(fs::read_to_string(packs.join("libx.so")).unwrap(), "two");
        assert_eq!(fs::read_dir(&packs).unwrap().count(), 1);
    }

    #[test]
    fn a_pack_that_was_not_built_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = stage(&folder.path().join("libx.so"), folder.path()).unwrap_err();
        assert!(error.to_string().contains("libx.so"), "{error:#}");
    }
}
