//! Builds, then becomes the binary.

use std::ffi::OsString;

use crate::build::{build, split_features, with_features};
use crate::command::Step;
use crate::own;
use crate::workspace::Workspace;

/// Builds the binary and its packs, then hands over. Gives an exit code where something ended
/// before that.
pub(crate) fn run(
    workspace: &Workspace,
    subcommand: Option<&'static str>,
    args: Vec<OsString>,
) -> anyhow::Result<u8> {
    let (features, args) = split_features(args);
    let workspace = with_features(workspace, &features);
    let mut code = build(&workspace, &features)?;
    if code == 0 && uses_packs(subcommand) {
        code = own::build_and_stage(&workspace)?;
    }
    match code {
        0 => step(&workspace, subcommand, args).become_it(),
        code => Ok(code),
    }
}

/// Whether the subcommand looks for packs; none is `run`, which may be anything.
fn uses_packs(subcommand: Option<&str>) -> bool {
    matches!(subcommand, None | Some("bench" | "plugin"))
}

/// The binary, in the user's own folder, so that paths mean what they seem to mean.
fn step(workspace: &Workspace, subcommand: Option<&'static str>, args: Vec<OsString>) -> Step {
    Step::new(workspace.binary(workspace.profile)).args(subcommand).args(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_gets_the_subcommand_and_the_arguments() {
        let workspace = Workspace { target: "/t".into(), ..Workspace::example() };
        let args = || vec!["--method".into(), "diffood".into()];
        assert_eq!(
            step(&workspace, Some("bench"), args()),
            Step::new(workspace.binary(workspace.profile)).args(["bench", "--method", "diffood"])
        );
        assert_eq!(
            step(&workspace, None, args()),
            Step::new(workspace.binary(workspace.profile)).args(["--method", "diffood"])
        );
    }
}
