//! `oodbench plugin`: what packs there are, what they say, and whether they keep the contract.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use oodbench_engine::catalogue::{Refused, catalogue, check, probe};
use oodbench_engine::pack::{DetectorInfo, PackSummary};

use crate::environment as env;
use crate::exit::{DONE, Failure, PLUGIN_REFUSED, print};
use crate::observer::{ProgressMode, Talk};
use crate::report::MessageFormat;

#[derive(Debug, Args)]
pub(crate) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// List every detector that is found, and what it needs.
    #[command(
        after_help = "Examples:\n  oodbench plugin list\n  oodbench plugin list --plugin-path target/release"
    )]
    List {
        /// A pack, or a folder with packs.
        #[arg(long, value_name = "PATH")]
        plugin_path: Vec<PathBuf>,
        /// How the list is printed.
        #[arg(long, value_enum, default_value = "human")]
        message_format: MessageFormat,
    },
    /// Show everything that a pack says about its detectors.
    #[command(
        after_help = "Examples:\n  oodbench plugin inspect target/release/packs/libposthoc.so"
    )]
    Inspect {
        /// The pack.
        file: PathBuf,
        /// How it is printed.
        #[arg(long, value_enum, default_value = "human")]
        message_format: MessageFormat,
        /// Show the layouts that differ, too.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Run the conformance check on every detector of a pack.
    #[command(
        after_help = "Examples:\n  oodbench plugin check my-detector\n  oodbench plugin check target/release/libmine.so\n  oodbench plugin check target/release/packs/libposthoc.so --detector knn"
    )]
    Check {
        /// The file of a pack, the id of a detector, or the name of a pack that `plugin list` shows.
        pack: PathBuf,
        /// One detector of the pack instead of all.
        #[arg(long, value_name = "ID")]
        detector: Option<String>,
        /// A pack, or a folder with packs, where an id or a name is looked for.
        #[arg(long, value_name = "PATH")]
        plugin_path: Vec<PathBuf>,
    },
}

pub(crate) fn run(args: &PluginArgs) -> Result<u8, Failure> {
    match &args.command {
        PluginCommand::List { plugin_path, message_format } => list(plugin_path, *message_format),
        PluginCommand::Inspect { file, message_format, verbose } => {
            inspect(file, *message_format, *verbose)
        }
        PluginCommand::Check { pack, detector, plugin_path } => {
            let (file, id) = find(pack, plugin_path)?;
            check_pack(&file, detector.as_deref().or(id))
        }
    }
}

fn refusal(refused: Refused, verbose: bool) -> Failure {
    let message = match refused.details.filter(|_| verbose) {
        Some(details) => format!("{}\n\n{details}", refused.message),
        None => refused.message,
    };
    Failure { message, hint: refused.hint, code: PLUGIN_REFUSED }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    Ok(format!("{text}\n"))
}

fn list(plugin_path: &[PathBuf], format: MessageFormat) -> Result<u8, Failure> {
    let search = env::search_path(plugin_path)?;
    let (catalogue, refused) = catalogue(&env::worker()?, &search)?;
    let talk = Talk::new(ProgressMode::Counter, false);
    for refused in refused {
        talk.line(&format!("warning: {}", refused.message));
    }
    if format == MessageFormat::Json {
        print(&json(&catalogue.packs())?)?;
        return Ok(DONE);
    }
    let mut text = String::new();
    for pack in catalogue.packs() {
        text.push_str(&format!("{} {}  {}\n", pack.name, pack.version, pack.path.display()));
        for detector in &pack.detectors {
            let needs = needs(detector);
            text.push_str(&format!(
                "  {:<14} {:<12} {}\n  {:<14} needs {needs}\n",
                detector.id, detector.family, detector.summary, ""
            ));
        }
    }
    if text.is_empty() {
        let places: Vec<String> = search.places().map(|p| p.display().to_string()).collect();
        text = format!("no packs in {}\n", places.join(", "));
    }
    print(&text)?;
    Ok(DONE)
}

fn inspect(file: &Path, format: MessageFormat, verbose: bool) -> Result<u8, Failure> {
    let summary = probe(&env::worker()?, file).map_err(|refused| refusal(refused, verbose))?;
    if format == MessageFormat::Json {
        print(&json(&summary)?)?;
        return Ok(DONE);
    }
    print(&describe(&summary))?;
    Ok(DONE)
}

/// What a detector needs: of the host, and of the classifier.
fn needs(detector: &DetectorInfo) -> String {
    let of_host = detector.needs.names().into_iter().map(str::to_owned);
    let heads = detector.heads().map(|head| format!("the further head `{head}`"));
    let mut needs: Vec<String> = of_host.chain(heads).collect();
    if !detector.companion_of.is_empty() {
        needs.push(format!("training by {}", detector.companion_of));
    }
    needs.join(", ")
}

fn describe(pack: &PackSummary) -> String {
    let mut text = format!(
        "{} {} (sdk {}), built for {}\n{}\nblake3 {}\n",
        pack.name,
        pack.version,
        pack.sdk_version,
        pack.built_for,
        pack.path.display(),
        pack.blake3
    );
    for detector in &pack.detectors {
        text.push_str(&format!(
            "\n{} - {} ({}, {})\n  {}\n  {} {}\n  needs {}\n",
            detector.id,
            detector.title,
            detector.family,
            detector.year,
            detector.summary,
            detector.paper,
            detector.url,
            needs(detector)
        ));
        for param in &detector.params {
            text.push_str(&format!(
                "  {} ({}, default {}): {} [{}]\n",
                param.name,
                param.type_name(),
                param.default,
                param.doc,
                param.source
            ));
        }
    }
    text
}

/// The file of the pack that was named, and the id if it was one.
fn find<'a>(
    named: &'a Path,
    plugin_path: &[PathBuf],
) -> Result<(PathBuf, Option<&'a str>), Failure> {
    // A path of more than a name, or one that is there, is meant as such.
    let name = named.to_str().filter(|name| !name.contains(['/', '\\', '.']) && !named.is_file());
    let Some(name) = name else { return Ok((named.to_owned(), None)) };
    let (catalogue, _) = catalogue(&env::worker()?, &env::search_path(plugin_path)?)?;
    if let Some(pack) = catalogue.packs().iter().find(|pack| pack.name == name) {
        return Ok((pack.path.clone(), None));
    }
    let (pack, _) = catalogue.find(name).map_err(oodbench_engine::EngineError::from)?;
    Ok((pack.path.clone(), Some(name)))
}

fn check_pack(file: &Path, only: Option<&str>) -> Result<u8, Failure> {
    let worker = env::worker()?;
    let summary = probe(&worker, file).map_err(|refused| refusal(refused, false))?;
    let ids: Vec<&str> = summary.detectors.iter().map(|detector| detector.id.as_str()).collect();
    if let Some(id) = only
        && !ids.contains(&id)
    {
        return Err(oodbench_engine::EngineError::unknown("detector", id, ids).into());
    }
    let mut failed = 0;
    for id in ids.into_iter().filter(|id| only.is_none_or(|only| only == *id)) {
        let results = check(&worker, file, id);
        let n_failed = results.iter().filter(|result| !result.passed).count();
        let n_passed = results.len() - n_failed;
        let word = if n_failed == 0 { "ok" } else { "FAILED" };
        let mut text = format!("{id:<14} {word}: {n_passed} of {} checks passed\n", results.len());
        for result in results.iter().filter(|result| !result.passed) {
            text.push_str(&format!("  {}: {}\n", result.check, result.message));
        }
        print(&text)?;
        failed += n_failed;
    }
    Ok(if failed == 0 { DONE } else { PLUGIN_REFUSED })
}
