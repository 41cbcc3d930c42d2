//! Programs to start: put together first, so that tests see them, then shown and run.

#![expect(clippy::print_stderr, reason = "xtask talks to its user, on stderr only")]

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::Context;

/// One line to the user. Standard output belongs to the binary.
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    /// Variables that it does not get from xtask's own environment.
    without: Vec<&'static str>,
    folder: Option<PathBuf>,
}

impl Step {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self { program, args: Vec::new(), env: Vec::new(), without: Vec::new(), folder: None }
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Takes a variable out of the environment.
    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.without.push(name);
        self
    }

    /// Runs in this folder instead of the user's.
    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    fn to_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        for name in &self.without {
            command.env_remove(name);
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Runs it and gives its exit code, whatever that is.
    pub(crate) fn run(&self) -> anyhow::Result<u8> {
        let status = self.to_command().status().with_context(|| format!("start `{self}`"))?;
        Ok(code(status))
    }

    /// Runs it and gives its exit code and what it wrote to standard output.
    pub(crate) fn output(&self) -> anyhow::Result<(u8, String)> {
        let mut command = self.to_command();
        let output = command.stderr(std::process::Stdio::inherit()).output();
        let output = output.with_context(|| format!("start `{self}`"))?;
        let text = String::from_utf8(output.stdout)
            .with_context(|| format!("read what `{self}` wrote"))?;
        Ok((code(output.status), text))
    }

    /// Runs it and gives its exit code and what it wrote to standard error.
    pub(crate) fn errors(&self) -> anyhow::Result<(u8, String)> {
        let output = self.to_command().output().with_context(|| format!("start `{self}`"))?;
        Ok((code(output.status), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Shows it, then runs it.
    pub(crate) fn show_and_run(&self) -> anyhow::Result<u8> {
        say(&format!("$ {self}"));
        self.run()
    }

    /// Becomes it, where the system can do that: signals and the exit code are then the program's
    /// own. Elsewhere runs it and gives its exit code.
    pub(crate) fn become_it(&self) -> anyhow::Result<u8> {
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            let error = self.to_command().exec();
            Err(error).with_context(|| format!("start `{self}`"))
        }
        #[cfg(not(unix))]
        self.run()
    }
}

/// The exit code that passes a status on; 128 plus the signal, as shells have it.
fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128 | u8::try_from(signal).unwrap_or(0);
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Runs steps until one fails; gives its exit code.
pub(crate) fn run_all(steps: &[Step]) -> anyhow::Result<u8> {
    for step in steps {
        let code = step.show_and_run()?;
        if code != 0 {
            say(&format!("error: `{step}` ended with {code}"));
            return Ok(code);
        }
    }
    Ok(0)
}

/// As one would type it.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.without.is_empty() {
            f.write_str("env ")?;
            self.without.iter().try_for_each(|name| write!(f, "-u {name} "))?;
        }
        for (name, value) in &self.env {
            write!(f, "{name}={} ", quoted(value))?;
        }
        let name = self.program.file_stem().unwrap_or(self.program.as_os_str());
        f.write_str(&quoted(name))?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", quoted(arg)))
    }
}

fn quoted(text: &OsStr) -> Cow<'_, str> {
    let text = text.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_one_would_type_it() {
        let step = Step::new("/usr/bin/cargo")
            .args(["doc", "--no-deps"])
            .arg("a file's name")
            .env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(
            step.to_string(),
            r"RUSTDOCFLAGS='-D warnings' cargo doc --no-deps 'a file'\''s name'"
        );
    }

    #[cfg(unix)]
    #[test]
    fn exit_codes_are_those_of_the_program() {
        let sh = |script: &str| Step::new("sh").args(["-c", script]).run().unwrap();
        assert_eq!(sh("exit 0"), 0);
        assert_eq!(sh("exit 100"), 100);
        assert_eq!(sh("kill -9 $$"), 137);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Step::new("no-such-program").arg("x").run().unwrap_err();
        assert!(format!("{error:#}").starts_with("start `no-such-program x`: "), "{error:#}");
    }
}
