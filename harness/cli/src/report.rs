//! `oodbench report`: the leaderboard of a run, from its records.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use oodbench_record::RunFolder;
use oodbench_reports::{Leaderboard, Status, json, terminal, write_all};

use crate::environment::{styled, width};
use crate::exit::{CELLS_FAILED, DONE, Failure, OUTSTANDING, print};
use crate::observer::{ProgressMode, Talk};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MessageFormat {
    /// A table.
    Human,
    /// The leaderboard as JSON.
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  oodbench report runs/glyphs
  oodbench report runs/glyphs --message-format json | jq .rows[0]")]
pub(crate) struct ReportArgs {
    /// The folder of a run.
    run: PathBuf,
    /// How the leaderboard is printed.
    #[arg(long, value_enum, default_value = "human")]
    message_format: MessageFormat,
}

pub(crate) fn run(args: &ReportArgs) -> Result<u8, Failure> {
    let talk = Talk::new(ProgressMode::Counter, false);
    show(&args.run, args.message_format, &talk, Warned::Nothing)
}

/// Which warnings the user has seen already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warned {
    Nothing,
    /// Those that are said while a run goes on.
    WhileRunning,
}

/// Computes the leaderboard, writes its files and prints it.
pub(crate) fn show(
    run: &Path,
    format: MessageFormat,
    talk: &Talk,
    warned: Warned,
) -> Result<u8, Failure> {
    let folder = RunFolder::new(run);
    let board = Leaderboard::new(&folder)?;
    let written = write_all(&board, &folder)?;
    match format {
        MessageFormat::Human => {
            print(&terminal::render(&board, width(), styled()))?;
            let scores = folder.root().join("scores");
            let files = [&written.html, &written.csv, &written.markdown, &written.json];
            let files = files.into_iter().chain(&written.search).chain([&scores]);
            let lines = files.map(|path| format!("{}\n", path.display()));
            print(&format!("\n{}", lines.collect::<String>()))?;
        }
        MessageFormat::Json => print(&json::render(&board)?)?,
    }
    // The marks of the run stand below the table.
    for warning in &board.warnings {
        if warned == Warned::Nothing || !warning.is_said_while_running() {
            talk.line(&format!("warning: {warning}"));
        }
    }
    let any = |wanted: fn(&Status) -> bool| board.rows.iter().any(|row| wanted(&row.status));
    if any(|status| matches!(status, Status::Failed { .. } | Status::Partial { .. })) {
        return Ok(CELLS_FAILED);
    }
    if any(|status| matches!(status, Status::Outstanding)) {
        return Ok(OUTSTANDING);
    }
    Ok(DONE)
}
