//! Files that are part of the program: the weights of the embedded benchmark. A benchmark file
//! names them as `embedded:NAME`, where NAME is a path below `datasets/benchmarks`.

/// The content of an embedded file.
#[must_use]
pub fn embedded(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$((
            $name,
            include_bytes!(concat!("../benchmarks/", $name)),
        )),*]
    };
}

/// All of them, made by `cargo xtask train embedded`.
const FILES: &[(&str, &[u8])] =
    files!["glyphs/classifier.safetensors", "glyphs/diffusion.safetensors"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Benchmark, builtins};

    #[test]
    fn every_embedded_file_that_a_benchmark_names_is_there() {
        let mut named = 0;
        for builtin in builtins() {
            let benchmark: Benchmark = builtin.benchmark().unwrap();
            let places = benchmark.assets.values().chain(&benchmark.classifier.weights);
            for name in places.filter_map(|place| place.strip_prefix("embedded:")) {
                assert!(embedded(name).is_some_and(|bytes| !bytes.is_empty()), "{name}");
                named += 1;
            }
        }
        assert_eq!(named, FILES.len(), "each embedded file is named by a benchmark");
    }

    #[test]
    fn the_embedded_files_stay_small() {
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total < 8 << 20, "{total} bytes make the program heavy");
    }
}
