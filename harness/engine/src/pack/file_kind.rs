//! What a file is, by its first bytes: the system's loader says `invalid ELF header` for a text
//! file, and dies of a bus error on a truncated library.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// What a pack must be on this machine.
pub(super) fn expected() -> String {
    let format = if cfg!(windows) {
        "a DLL"
    } else if cfg!(target_vendor = "apple") {
        "a Mach-O shared library"
    } else {
        "an ELF shared library"
    };
    format!("{format} for {}", std::env::consts::ARCH)
}

/// What else than a shared library for this machine the file is; nothing where it looks like one.
pub(super) fn problem(file: &mut File) -> io::Result<Option<String>> {
    let len = file.metadata()?.len();
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(512).read_to_end(&mut head)?;
    if head.starts_with(b"\x7fELF") {
        if !cfg!(all(unix, not(target_vendor = "apple"))) {
            return Ok(Some("an ELF file".to_owned()));
        }
        return elf_problem(file, &head, len);
    }
    let native = if cfg!(windows) {
        head.starts_with(b"MZ")
    } else {
        cfg!(target_vendor = "apple") && is_mach_o(&head)
    };
    Ok((!native).then(|| describe(&head).to_owned()))
}

fn is_mach_o(head: &[u8]) -> bool {
    const MAGIC: [&[u8]; 3] = [b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
    MAGIC.iter().any(|magic| head.starts_with(magic))
}

fn describe(head: &[u8]) -> &'static str {
    match head {
        [] => "an empty file",
        _ if is_mach_o(head) => "a Mach-O file for macOS",
        [b'M', b'Z', ..] => "a file for Windows",
        _ if head.starts_with(b"!<arch>\n") => "a static library",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        [0x1f, 0x8b, ..] => "a gzip archive",
        _ if is_text(head) => "a text file",
        _ => "a file of an unknown format",
    }
}

/// Printable UTF-8, where the last character may be cut off.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(err) if err.error_len().is_none() => {
            std::str::from_utf8(&head[..err.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace())
}

/// The number of this machine in an ELF header.
fn elf_machine() -> Option<u16> {
    match std::env::consts::ARCH {
        "x86_64" => Some(62),
        "aarch64" => Some(183),
        "x86" => Some(3),
        "arm" => Some(40),
        "riscv64" => Some(243),
        "powerpc64" => Some(21),
        "s390x" => Some(22),
        _ => None,
    }
}

fn machine_name(machine: u16) -> String {
    let name = match machine {
        3 => "x86",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        other => return format!("machine number {other}"),
    };
    name.to_owned()
}

/// Little-endian number of `n` bytes; nothing past the end.
fn number(bytes: &[u8], at: usize, n: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + n)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn elf_problem(file: &mut File, head: &[u8], len: u64) -> io::Result<Option<String>> {
    /// `e_type` of a shared library, and of a position-independent program.
    const SHARED: u64 = 3;
    const LOAD: u64 = 1;
    const TRUNCATED: &str = "a truncated ELF file";
    let truncated = Ok(Some(TRUNCATED.to_owned()));
    let Some(machine) = number(head, 18, 2) else { return truncated };
    let bits = if head[4] == 2 { 64 } else { 32 };
    let little = head[5] == 1;
    if usize::BITS != bits || !little || elf_machine().is_some_and(|m| u64::from(m) != machine) {
        let order = if little { "" } else { "big-endian " };
        let name = machine_name(machine as u16);
        return Ok(Some(format!("a {order}{bits}-bit ELF file for {name}")));
    }
    if number(head, 16, 2) != Some(SHARED) {
        return Ok(Some("an ELF file that is no shared library".to_owned()));
    }
    if bits != 64 {
        return Ok(None);
    }
    let fields =
        (number(head, 32, 8), number(head, 40, 8), number(head, 54, 2), number(head, 56, 2));
    let sections = (number(head, 58, 2), number(head, 60, 2));
    let ((Some(segments), Some(table), Some(size), Some(n)), (Some(section), Some(n_sections))) =
        (fields, sections)
    else {
        return truncated;
    };
    // The table of sections stands at the end of the file, so a download that stopped early lacks it.
    if table.saturating_add(section * n_sections) > len {
        return truncated;
    }
    let mut headers = Vec::new();
    file.seek(SeekFrom::Start(segments))?;
    file.by_ref().take(size * n).read_to_end(&mut headers)?;
    for header in headers.chunks_exact((size as usize).max(56)) {
        let (kind, at, n) = (number(header, 0, 4), number(header, 8, 8), number(header, 32, 8));
        if kind == Some(LOAD) && at.unwrap_or(0).saturating_add(n.unwrap_or(0)) > len {
            return truncated;
        }
    }
    if headers.len() as u64 != size * n {
        return truncated;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn kind(bytes: &[u8]) -> Option<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        problem(&mut file).unwrap()
    }

    fn check(bytes: &[u8], expected: &str) {
        assert_eq!(kind(bytes).as_deref(), Some(expected));
    }

    #[test]
    fn other_files_are_named() {
        check(b"", "an empty file");
        check("not a library, only words: é\n".as_bytes(), "a text file");
        check(b"#!/bin/sh\necho\n", "a text file");
        check(b"!<arch>\n/   ", "a static library");
        check(b"PK\x03\x04....", "a zip archive");
        check(b"\x00\x01\x02", "a file of an unknown format");
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn libraries_of_other_machines_are_named() {
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (head[16], head[18]) = (3, 183);
        check(&head, "a 64-bit ELF file for aarch64");
        check(b"\xcf\xfa\xed\xfe\x07\x00\x00\x01", "a Mach-O file for macOS");
        check(b"MZ\x90\x00", "a file for Windows");
        head[18] = 62;
        head[16] = 1;
        check(&head, "an ELF file that is no shared library");
        check(b"\x7fELF\x02\x01", "a truncated ELF file");
    }

    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    #[test]
    fn a_program_cut_short_is_truncated() {
        // The test program itself: an ELF file that is whole, or of the kind of a shared library.
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(kind(&bytes), None);
        for len in [20, 64, 1000, bytes.len() / 2, bytes.len() - 1] {
            check(&bytes[..len], "a truncated ELF file");
        }
    }
}
