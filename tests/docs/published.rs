//! Published figures of detectors, `docs/published.csv`: data that stands beside the descriptors,
//! because a figure belongs to a paper's run and not to an implementation.

use std::fs;
use std::path::Path;

/// The benchmarks that have such figures, and what they are called, in the order of the columns.
pub const BENCHMARKS: [(&str, &str); 4] = [
    ("cifar10", "CIFAR-10"),
    ("cifar100", "CIFAR-100"),
    ("imagenet200", "ImageNet-200"),
    ("imagenet", "ImageNet-1K"),
];

/// AUROC of one detector on one benchmark.
pub struct Published {
    /// The id of the detector, or what it would be.
    pub detector: String,
    /// Parameters other than the defaults, `name=value`; mostly none.
    pub settings: String,
    /// What the source calls it.
    pub name: String,
    pub benchmark: String,
    /// Per cent, with the standard deviation where there is one.
    pub near: String,
    pub far: String,
}

/// Reads the figures.
///
/// # Panics
/// When the file is not what it should be: this is a test.
pub fn read(root: &Path) -> Vec<Published> {
    let text = fs::read_to_string(root.join("docs/published.csv")).expect("docs/published.csv");
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let columns = "detector,settings,name,benchmark,training,classifier,near,near_sd,far,far_sd";
    assert_eq!(lines.next(), Some(columns), "the columns of docs/published.csv");
    let with_spread = |value: &str, sd: &str| match sd {
        "" => value.to_owned(),
        sd => format!("{value} ± {sd}"),
    };
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let [detector, settings, name, benchmark, _, _, near, near_sd, far, far_sd] = cells[..]
        else {
            panic!("docs/published.csv: expected 10 cells, got `{line}`");
        };
        Published {
            detector: detector.to_owned(),
            settings: settings.to_owned(),
            name: name.to_owned(),
            benchmark: benchmark.to_owned(),
            near: with_spread(near, near_sd),
            far: with_spread(far, far_sd),
        }
    };
    lines.map(row).collect()
}
