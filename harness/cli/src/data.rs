//! `oodbench data`: the image sets of a benchmark.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use oodbench_datasets::{DataDir, PrepareRequest, builtins, locate, pack_path, prepare};

use crate::environment as env;
use crate::exit::{DONE, Failure, SETUP, print};
use crate::observer::{ProgressMode, Talk};

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// List the benchmarks, or the sets of one and whether their images are there.
    #[command(
        after_help = "Examples:\n  oodbench data list\n  oodbench data list cifar10 --data DIR"
    )]
    List {
        /// A benchmark by name, or a TOML file.
        benchmark: Option<String>,
        /// The folder with the images.
        #[arg(long, value_name = "DIR", default_value = "data")]
        data: PathBuf,
    },
    /// Decode and resize every set of a benchmark once.
    #[command(after_help = "Examples:\n  oodbench data prepare cifar10 --data DIR")]
    Prepare(SetsArgs),
    /// Read every prepared set of a benchmark and compare it with its hash.
    #[command(after_help = "Examples:\n  oodbench data verify cifar10 --data DIR")]
    Verify(SetsArgs),
}

#[derive(Debug, Args)]
struct SetsArgs {
    /// A benchmark by name, or a TOML file.
    benchmark: String,
    /// The folder with the images.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// The folder for prepared images [default: ~/.cache/oodbench].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

pub(crate) fn run(args: &DataArgs) -> Result<u8, Failure> {
    match &args.command {
        DataCommand::List { benchmark: None, .. } => {
            let mut text = String::new();
            for builtin in builtins() {
                let benchmark = builtin.benchmark()?;
                text.push_str(&format!("{:<12} {}\n", benchmark.name, benchmark.title));
            }
            print(&text)?;
            Ok(DONE)
        }
        DataCommand::List { benchmark: Some(name), data } => list(name, data.clone()),
        DataCommand::Prepare(args) => sets(args, false),
        DataCommand::Verify(args) => sets(args, true),
    }
}

fn list(name: &str, data: PathBuf) -> Result<u8, Failure> {
    let (benchmark, _) = env::benchmark(name)?;
    let scratch = env::cache(None)?.join("scratch");
    let mut all_there = true;
    for located in locate(&benchmark, &DataDir::new(data, scratch)) {
        let name = format!("{}/{}", located.set.role, located.set.name);
        let state = match &located.source {
            Ok(source) => format!("{} images", source.len()),
            Err(error) => {
                all_there = false;
                oodbench_engine::text::chain(error)
            }
        };
        print(&format!("{name:<24} {state}\n"))?;
    }
    Ok(if all_there { DONE } else { SETUP })
}

fn sets(args: &SetsArgs, verify: bool) -> Result<u8, Failure> {
    let talk = Talk::new(ProgressMode::Auto, false);
    let (benchmark, _) = env::benchmark(&args.benchmark)?;
    let cache = env::cache(args.cache.as_deref())?;
    let mut code = DONE;
    for located in locate(&benchmark, &DataDir::new(&args.data, cache.join("scratch"))) {
        let name = format!("{}-{}-{}", benchmark.name, located.set.role, located.set.name);
        let source = match located.source {
            Err(error) if error.is_missing() => {
                talk.line(&format!("{name}: {}", oodbench_engine::text::chain(&error)));
                code = SETUP;
                continue;
            }
            other => other?,
        };
        let request = PrepareRequest {
            name: &name,
            preprocess: located.preprocess,
            limit: None,
            cache_dir: &cache.join("packs"),
            progress: &talk,
        };
        if verify && !pack_path(source.as_ref(), &request).is_file() {
            print(&format!("{name}: not prepared\n"))?;
            continue;
        }
        let pack = prepare(source.as_ref(), &request)?;
        if verify {
            pack.verify()?;
        }
        let (n, path) = (pack.len(), pack.path().display());
        print(&format!("{name}: {n} images, {} {path}\n", &pack.content_hash()[..16]))?;
    }
    Ok(code)
}
