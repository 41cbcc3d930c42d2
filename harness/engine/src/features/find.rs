//! Which files of the folder are sets, and what else lies there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oodbench_datasets::Role;

use super::FeaturesError;
use crate::error::did_you_mean;

/// What is read.
const ENDINGS: [&str; 2] = ["safetensors", "npz"];

/// Files of the folder itself that are sets.
const SINGLE: [(&str, Role); 4] = [
    ("train", Role::IdTrain),
    ("val", Role::IdVal),
    ("ood_val", Role::OodVal),
    ("test", Role::IdTest),
];

/// Folders of sets.
const FOLDERS: [(&str, Role); 3] = [("near", Role::Near), ("far", Role::Far), ("csid", Role::Csid)];

const HEAD: &str = "head";

/// The files of a folder, in the order of the roles, sets of the same role by name.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) sets: Vec<(Role, String, PathBuf)>,
    pub(super) head: Option<PathBuf>,
}

/// The file of the layout that a set of this role lies in.
pub(crate) fn file_of(role: Role) -> &'static str {
    match role {
        Role::IdTrain => "train.safetensors",
        Role::IdVal => "val.safetensors",
        Role::OodVal => "ood_val.safetensors",
        Role::IdTest => "test.safetensors",
        Role::Near => "near/NAME.safetensors",
        Role::Far => "far/NAME.safetensors",
        Role::Csid => "csid/NAME.safetensors",
    }
}

/// Looks through the folder. What is no part of the layout is warned of, because it may be a
/// misspelt part.
pub(super) fn find(path: &Path, warnings: &mut Vec<String>) -> Result<Found, FeaturesError> {
    let (mut files, mut folders) = (BTreeMap::new(), BTreeMap::new());
    for entry in entries(path)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() {
            folders.insert(name, entry);
        } else if let Some(stem) = stem(&entry, warnings) {
            add(&mut files, stem, entry)?;
        }
    }
    let mut sets = Vec::new();
    for (name, role) in SINGLE {
        sets.extend(files.remove(name).map(|path| (role, name.to_owned(), path)));
    }
    let head = files.remove(HEAD);
    let singles = SINGLE.iter().map(|(name, _)| *name).chain([HEAD]);
    let known: Vec<String> = singles.map(str::to_owned).collect();
    for (stem, path) in files {
        warnings.push(unknown(&path, &stem, &known));
    }
    for (name, role) in FOLDERS {
        let Some(folder) = folders.remove(name) else { continue };
        let mut named = BTreeMap::new();
        for entry in entries(&folder)? {
            if let Some(stem) = stem(&entry, warnings) {
                add(&mut named, format!("{name}/{stem}"), entry)?;
            }
        }
        for (set, path) in named {
            let set = set[name.len() + 1..].to_owned();
            check_name(&set, &path)?;
            sets.push((role, set, path));
        }
    }
    let known: Vec<String> = FOLDERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, folder) in folders {
        warnings.push(unknown(&folder, &name, &known));
    }
    let nothing = |expected| FeaturesError::Nothing { path: path.to_owned(), expected };
    if !sets.iter().any(|(role, ..)| *role == Role::IdTest) {
        return Err(nothing("`test.safetensors` or `test.npz`"));
    }
    if !sets.iter().any(|(role, ..)| matches!(role, Role::Near | Role::Far)) {
        return Err(nothing("`.safetensors` or `.npz` files in `near` or `far`"));
    }
    Ok(Found { sets, head })
}

/// What lies in a folder, by name, hidden files aside.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, FeaturesError> {
    let read = |source| FeaturesError::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The name of a file without its ending, where that is one which is read.
fn stem(path: &Path, warnings: &mut Vec<String>) -> Option<String> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    let is_folder = path.is_dir();
    if !is_folder && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
        return Some(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    let got = if is_folder { ", got a folder" } else { "" };
    warnings.push(format!("`{}` is not read: expected .safetensors or .npz{got}", path.display()));
    None
}

fn add(
    files: &mut BTreeMap<String, PathBuf>,
    set: String,
    second: PathBuf,
) -> Result<(), FeaturesError> {
    match files.insert(set.clone(), second.clone()) {
        Some(first) => Err(FeaturesError::Twice { set, first, second }),
        None => Ok(()),
    }
}

fn unknown(path: &Path, name: &str, known: &[String]) -> String {
    let mut text = format!("`{}` is not read: no set has this name", path.display());
    if let Some(meant) = did_you_mean(name, known) {
        text.push_str(&format!(", did you mean `{meant}`?"));
    }
    text
}

/// Names become parts of file names and columns of tables.
fn check_name(name: &str, path: &Path) -> Result<(), FeaturesError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(allowed) {
        return Ok(());
    }
    Err(FeaturesError::Name { path: path.to_owned(), name: name.to_owned() })
}
