//! Files that are part of the program: the weights of the embedded benchmark. A benchmark file
//! names them as `embedded:NAME`.

/// The content of an embedded file.
#[must_use]
pub fn embedded(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

const FILES: &[(&str, &[u8])] = &[];
