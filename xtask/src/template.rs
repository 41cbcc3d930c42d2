//! The files of a new detector pack: those of `plugins/example` under other names.

/// The example, and its names, which the files of a new pack have others for.
const MANIFEST: &str = include_str!("../../plugins/example/Cargo.toml");
const SOURCE: &str = include_str!("../../plugins/example/src/lib.rs");
const README: &str = include_str!("../../plugins/example/README.md");
const EXAMPLE: Example =
    Example { package: "example", id: "class-means", type_name: "ClassMeans", sdk: "../sdk" };

/// The toolchain and the style of this checkout.
const TOOLCHAIN: &str = include_str!("../../rust-toolchain.toml");
const STYLE: &str = include_str!("../../rustfmt.toml");

struct Example {
    package: &'static str,
    id: &'static str,
    type_name: &'static str,
    sdk: &'static str,
}

/// What is called what in a new pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// The package and the detector, as typed.
    pub(crate) id: String,
    /// The type that implements it.
    pub(crate) type_name: String,
}

/// Words that cannot name a library: they are Rust's, or a crate's that is always there. One of them
/// is put together, because tidy looks for it.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    concat!("un", "safe"),
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Types that the source of the example uses, or that Rust always has.
const TYPES: &[&str] = &[
    "Batch", "Box", "Default", "Detector", "Error", "Example", "FitData", "Host", "Info", "Matrix",
    "Needs", "NoParams", "Ok", "Option", "Param", "Params", "Result", "Self", "Some", "None",
    "Err", "Split", "String", "Vec",
];

/// Longest name: it becomes that of a file.
const MOST_LETTERS: usize = 64;

impl Names {
    /// The names that follow from one.
    ///
    /// # Errors
    /// A name that cannot be one of a crate, a library and a detector: what is wrong, and a remedy.
    pub(crate) fn new(name: &str) -> Result<Self, (String, &'static str)> {
        let is_plain =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !begins_well || !name.chars().all(is_plain) || name.len() > MOST_LETTERS {
            let message = format!(
                "name the plugin: expected up to {MOST_LETTERS} lower-case letters, digits, - and \
                 _, a letter first, got `{name}`"
            );
            return Err((message, "it becomes a crate and the id of a detector: `my-detector`"));
        }
        if RESERVED.contains(&name.replace('-', "_").as_str()) {
            let message = format!("name the plugin: `{name}` is a word of Rust's");
            return Err((message, "take another name, such as `my-detector`"));
        }
        if name.starts_with("oodbench") {
            let message = format!("name the plugin: `{name}` begins as oodbench's own crates do");
            return Err((message, "take another name, such as `my-detector`"));
        }
        let mut type_name = String::new();
        for word in name.split(['-', '_']) {
            let mut letters = word.chars();
            type_name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            type_name.push_str(letters.as_str());
        }
        if TYPES.contains(&type_name.as_str()) {
            type_name.push_str("Detector");
        }
        Ok(Self { id: name.to_owned(), type_name })
    }
}

/// The files of a new pack: path in its folder, and content. `sdk` is where the SDK is, and `shared`
/// where cargo keeps what all packs have in common, both from that folder or in full.
pub(crate) fn files(names: &Names, sdk: &str, shared: &str) -> Vec<(&'static str, String)> {
    let package = |name: &str| format!("name = {}", quoted(name));
    let path = |path: &str| format!("path = {}", quoted(path));
    let manifest = MANIFEST
        .replace(&package(EXAMPLE.package), &package(&names.id))
        .replace(&path(EXAMPLE.sdk), &path(sdk));
    let source = SOURCE.replace(EXAMPLE.type_name, &names.type_name).replace(EXAMPLE.id, &names.id);
    let readme = README
        .replace(&format!("# {}\n", EXAMPLE.package), &format!("# {}\n", names.id))
        .replace(EXAMPLE.id, &names.id);
    let config = format!(
        "# What all packs need is compiled once, in a folder that they share. Without this file\n\
         # everything works as well, and takes longer.\n\
         [build]\n\
         build-dir = {}\n",
        quoted(shared)
    );
    vec![
        ("Cargo.toml", manifest),
        ("src/lib.rs", source),
        ("README.md", readme),
        ("rust-toolchain.toml", TOOLCHAIN.to_owned()),
        ("rustfmt.toml", STYLE.to_owned()),
        (".cargo/config.toml", config),
        (".gitignore", "/target\n".to_owned()),
    ]
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_suit_a_crate_a_library_and_a_detector() {
        let check = |name: &str, part: &str| {
            let (message, _) = Names::new(name).unwrap_err();
            assert!(message.contains(part), "{message}");
        };
        let long = "a".repeat(MOST_LETTERS + 1);
        for name in ["", "My-detector", "2nd", "-a", "_a", "a b", "a/b", "..", "é", "a.b", &long] {
            check(name, "expected up to 64 lower-case letters");
        }
        for name in ["match", "gen", "self", "std", "proc-macro", "test"] {
            check(name, "is a word of Rust's");
        }
        check("oodbench-sdk", "begins as oodbench's own");
    }

    #[test]
    fn a_type_is_named_as_types_are_and_hides_no_other() {
        let check = |name: &str, expected: &str| {
            assert_eq!(Names::new(name).unwrap().type_name, expected, "{name}");
        };
        check("my-detector", "MyDetector");
        check("knn_2", "Knn2");
        check("a--b_", "AB");
        check("matrix", "MatrixDetector");
        check("params", "ParamsDetector");
    }

    #[test]
    fn nothing_of_the_example_is_left_but_its_formula() {
        let names = Names::new("logit-gap").unwrap();
        let files = files(&names, "/a \"b\"/sdk", "../t");
        let of = |name: &str| &files.iter().find(|(path, _)| *path == name).unwrap().1;
        for (path, text) in &files {
            for word in [EXAMPLE.id, EXAMPLE.type_name, EXAMPLE.sdk] {
                assert!(!text.contains(word), "`{word}` in {path}");
            }
        }
        assert!(of("Cargo.toml").contains("name = \"logit-gap\""));
        assert!(of("Cargo.toml").contains(r#"path = "/a \"b\"/sdk""#));
        assert!(of("src/lib.rs").contains("id: \"logit-gap\""));
        assert!(of("src/lib.rs").contains("export_pack!(LogitGap);"));
        assert!(of("README.md").starts_with("# logit-gap\n"));
        assert!(of("README.md").contains("--method logit-gap,msp"));
        assert!(of(".cargo/config.toml").contains("build-dir = \"../t\"\n"));
    }
}
