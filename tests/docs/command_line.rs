//! The reference of the command line: the help of each subcommand, as the binary prints it.

use oodbench_tests::binary::Scene;

const HEAD: &str = "\
# The command line

Made by `cargo xtask docs` from the help of the binary; a test holds it against that. From a checkout
`cargo xtask` takes the same subcommands and builds what is needed first. Exit codes are listed in
the [README](../README.md#exit-codes).

";

/// `docs/cli.md`.
///
/// # Panics
/// When the binary does not print its help: this is a test.
pub fn page(scene: &Scene) -> String {
    let mut page = String::from(HEAD);
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        let help = help(scene, &command);
        let title = [&["oodbench".to_owned()], &command[..]].concat().join(" ");
        page.push_str(&format!("## {title}\n\n```text\n{help}\n```\n\n"));
        let mut further: Vec<Vec<String>> =
            subcommands(&help).map(|name| [&command[..], &[name.to_owned()]].concat()).collect();
        further.reverse();
        open.extend(further);
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn help(scene: &Scene, command: &[String]) -> String {
    let args: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
    let ran = scene.run(&args);
    ran.succeeded();
    let lines: Vec<&str> = ran.stdout.trim_end().lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// The names in the help's list of commands.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let list = list.split("\n\n").next().unwrap_or_default();
    // A description that goes on in the next line is indented further.
    let names = list.lines().filter_map(|line| line.strip_prefix("  "));
    names
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
}
