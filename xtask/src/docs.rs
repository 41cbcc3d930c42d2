//! `cargo xtask docs`: writes the parts of the documents that are generated.
//!
//! The tests of the target `docs` hold them against the descriptors of the packs and the help of
//! the binary; with `OODBENCH_DOCS=write` they write instead of failing, so that there is one place
//! that knows what belongs there. The README's example of a run is of one machine at one time, and
//! takes a run of every detector: it is made again by `--run` alone.

use std::fs;

use anyhow::Context;

use crate::build;
use crate::check;
use crate::command::{Step, run_all, say};
use crate::own;
use crate::workspace::{Profile, Workspace};

/// The run in the README stands in the block of code between these lines.
const BEGIN: &str = "<!-- begin: a run -->";
const END: &str = "<!-- end: a run -->";

/// Writes what is generated; gives an exit code.
pub(crate) fn run(workspace: &Workspace, with_run: bool) -> anyhow::Result<u8> {
    let mut code = check::prepare(workspace)?;
    if code == 0 {
        code = run_all(&[step(workspace)])?;
    }
    if code == 0 && with_run {
        code = example_run(workspace)?;
    }
    Ok(code)
}

fn step(workspace: &Workspace) -> Step {
    Step::new(&workspace.cargo)
        .args(["test", "--workspace", "--locked", "--test", "docs", "--target-dir"])
        .arg(&workspace.target)
        .env("OODBENCH_DOCS", "write")
        .folder(&workspace.root)
}

/// Runs every detector that comes with the program on the embedded benchmark, and puts the
/// leaderboard into the README.
fn example_run(workspace: &Workspace) -> anyhow::Result<u8> {
    let workspace = Workspace { profile: Profile::Release, ..workspace.clone() };
    match build::build(&workspace, &[])? {
        0 => own::unstage_all(&workspace, workspace.profile)?,
        code => return Ok(code),
    }
    // A folder of its own: in an earlier run's nothing would be run again.
    let out = workspace.target.join("docs-run");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("remove `{}`", out.display()))?;
    }
    let bench = Step::new(workspace.binary(workspace.profile))
        .args(["bench", "--method", "all", "--out"])
        .arg(&out)
        .env("OODBENCH_PLUGIN_PATH", "");
    say(&format!("$ {bench}"));
    let (code, text) = bench.output()?;
    if code != 0 {
        return Ok(code);
    }
    let readme = workspace.root.join("README.md");
    let old =
        fs::read_to_string(&readme).with_context(|| format!("read `{}`", readme.display()))?;
    let new = with_block(&old, &without_places(&text, &out.display().to_string()))
        .with_context(|| format!("find `{BEGIN}`, a block of code, `{END}` in the README"))?;
    fs::write(&readme, new).with_context(|| format!("write `{}`", readme.display()))?;
    Ok(0)
}

/// What was printed without the lines that say where on this machine the files lie.
fn without_places(text: &str, out: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(out)).collect();
    lines.join("\n")
}

/// The page with another text in the block of code between the two marks.
fn with_block(page: &str, text: &str) -> Option<String> {
    const FENCE: &str = "```";
    let begin = page.find(BEGIN)?;
    let end = begin + page[begin..].find(END)?;
    let open = begin + page[begin..end].find(FENCE)?;
    let start = open + page[open..end].find('\n')? + 1;
    let close = start + page[start..end].rfind(FENCE)?;
    let lines: Vec<&str> = text.trim_matches('\n').lines().map(str::trim_end).collect();
    Some(format!("{}{}\n{}", &page[..start], lines.join("\n"), &page[close..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_between_the_marks_is_replaced_and_nothing_else() {
        let page = "```\na\n```\n<!-- begin: a run -->\nwords\n```text\nold\nolder\n```\n<!-- end: a run -->\n```\nb\n```\n";
        let new = with_block(page, "\nnew  \n\nnewer\n").unwrap();
        let expected = "```\na\n```\n<!-- begin: a run -->\nwords\n```text\nnew\n\nnewer\n```\n<!-- end: a run -->\n```\nb\n```\n";
        assert_eq!(new, expected);
        assert_eq!(with_block("no marks", "text"), None);
    }

    #[test]
    fn places_on_this_machine_are_left_out() {
        let text = "msp 90.67\n\n/repo/target/docs-run/leaderboard.csv\n";
        assert_eq!(without_places(text, "/repo/target/docs-run"), "msp 90.67\n");
    }

    #[test]
    fn the_readme_has_a_block_for_the_run() {
        let readme = fs::read_to_string(Workspace::from_env().root.join("README.md")).unwrap();
        assert!(with_block(&readme, "text").unwrap().contains("\n```text\ntext\n```\n"));
    }

    #[test]
    fn the_tests_of_the_documents_write_them() {
        assert_eq!(
            step(&Workspace::example()).to_string(),
            "OODBENCH_DOCS=write cargo test --workspace --locked --test docs \
             --target-dir /repo/target"
        );
    }
}
