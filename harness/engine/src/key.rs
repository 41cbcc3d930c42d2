//! Keys by content: a hash over named parts. Two things have the same key when everything that
//! went into them is the same, whatever the files are called.

/// Makes a key.
pub struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// Keys of different kinds never collide.
    pub fn new(kind: &str) -> Self {
        let mut builder = Self(blake3::Hasher::new());
        builder.part("kind", kind);
        builder
    }

    /// Adds a part. Name and value are told apart by their lengths.
    pub fn part(&mut self, name: &str, value: &str) {
        for text in [name, value] {
            self.0.update(&(text.len() as u64).to_le_bytes());
            self.0.update(text.as_bytes());
        }
    }

    /// The key: 32 hexadecimal digits, 128 bits.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex()[..32].to_owned()
    }
}

/// BLAKE3 of a file, in hexadecimal.
///
/// # Errors
/// A file that cannot be read.
pub fn hash_file(path: &std::path::Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let key = |parts: &[(&str, &str)]| {
            let mut builder = KeyBuilder::new("test");
            parts.iter().for_each(|(name, value)| builder.part(name, value));
            builder.finish()
        };
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b")]), key(&[("a", ""), ("b", "")]));
        assert_eq!(key(&[("a", "b")]).len(), 32);
    }
}
