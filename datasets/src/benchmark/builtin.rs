//! The benchmarks that come with the program. The folder `datasets/benchmarks` is the list; a test
//! holds this table against it.

use super::Benchmark;
use crate::error::DatasetError;

/// A benchmark whose file is part of the program.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    pub name: &'static str,
    /// The file, as it is in `datasets/benchmarks`.
    pub text: &'static str,
}

impl Builtin {
    /// Parses the file.
    ///
    /// # Errors
    /// Never, as a test makes sure.
    pub fn benchmark(&self) -> Result<Benchmark, DatasetError> {
        Benchmark::parse(self.text, &format!("{} (built in)", self.name))
    }
}

/// All of them, in the order in which they are listed to the user.
#[must_use]
pub fn builtins() -> &'static [Builtin] {
    macro_rules! embedded {
        ($($name:literal),* $(,)?) => {
            &[$(Builtin {
                name: $name,
                text: include_str!(concat!("../../benchmarks/", $name, ".toml")),
            }),*]
        };
    }
    embedded!["glyphs", "cifar10", "cifar100", "imagenet200", "imagenet"]
}

/// The one of that name.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static Builtin> {
    builtins().iter().find(|builtin| builtin.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded_and_named_after_its_content() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benchmarks");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".toml"))
            .collect();
        let embedded = builtins().iter().map(|builtin| format!("{}.toml", builtin.name)).collect();
        assert_eq!(files, embedded);
        for builtin in builtins() {
            assert_eq!(builtin.benchmark().unwrap().name, builtin.name);
        }
    }
}
