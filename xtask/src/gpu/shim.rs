//! Static libraries in the place of NVIDIA's, so that a build for GPUs links where there are none
//! and starts where there is no driver.
//!
//! candle has cudarc link against `libcuda` and its kin, which makes the loader ask for
//! `libcuda.so.1` before `main`. Here each of these libraries becomes an archive `lib<name>.a` with
//! every function that cudarc declares: two instructions that jump through a slot. The slot leads
//! to a resolver at first, which opens the real library at the first call, looks the function up
//! and leaves its address in the slot. Where the library or the function is missing, the slot gets
//! a function that answers as the library would on a machine without a device: an error code, a
//! line of text, or nothing, after what the declaration returns.
//!
//! The functions that exist are read from cudarc's own sources, so that they are those of the
//! version in `Cargo.lock`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::command::Step;

/// A library of NVIDIA's.
pub(super) struct Library {
    /// As the linker knows it.
    pub(super) name: &'static str,
    /// The folder of its declarations in cudarc's sources.
    module: &'static str,
    /// Under which names it is looked for, in this order.
    files: &'static [&'static str],
    /// What a function that returns a status answers where the library is missing: the library's
    /// own code for "no device" or "not initialised".
    absent: u32,
}

/// Every library that candle's CUDA features, cuDNN's and NCCL's link against.
pub(super) const LIBRARIES: &[Library] = &[
    Library { name: "cuda", module: "driver", files: &["libcuda.so.1"], absent: 100 },
    Library {
        name: "cublas",
        module: "cublas",
        files: &["libcublas.so.13", "libcublas.so.12"],
        absent: 1,
    },
    Library {
        name: "cublasLt",
        module: "cublaslt",
        files: &["libcublasLt.so.13", "libcublasLt.so.12"],
        absent: 1,
    },
    Library { name: "curand", module: "curand", files: &["libcurand.so.10"], absent: 101 },
    Library {
        name: "nvrtc",
        module: "nvrtc",
        files: &["libnvrtc.so.13", "libnvrtc.so.12"],
        absent: 2,
    },
    Library { name: "cudnn", module: "cudnn", files: &["libcudnn.so.9"], absent: 1001 },
    Library { name: "nccl", module: "nccl", files: &["libnccl.so.2"], absent: 3 },
];

/// What a function gives back, as far as a missing library has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returns {
    Status,
    Text,
    /// A size or a version, for which 0 says that there is none; or nothing at all.
    Number,
}

impl Returns {
    /// The letter in front of a function's name in the archive.
    fn letter(self) -> char {
        match self {
            Self::Status => 's',
            Self::Text => 't',
            Self::Number => 'n',
        }
    }
}

/// Makes the archives in `folder`, unless they are there already for these sources.
///
/// # Errors
/// When the sources are not as expected, or the compiler is missing or fails.
pub(super) fn write(sources: &Path, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create `{}`", folder.display()))?;
    let made_of = format!("{}\n{}", sources.display(), include_str!("shim.rs"));
    let mark = folder.join("made-of.txt");
    if fs::read_to_string(&mark).is_ok_and(|text| text == made_of) {
        return Ok(());
    }
    for library in LIBRARIES {
        let path = sources.join(library.module).join("sys/mod.rs");
        let text =
            fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
        let functions = functions(&text);
        if functions.is_empty() {
            bail!("`{}` expected declarations of C functions, got none", path.display());
        }
        archive(library, &functions, folder)
            .with_context(|| format!("make the library `lib{}.a`", library.name))?;
    }
    fs::write(&mark, made_of).with_context(|| format!("write `{}`", mark.display()))
}

fn archive(
    library: &Library,
    functions: &BTreeMap<String, Returns>,
    folder: &Path,
) -> anyhow::Result<()> {
    let name = library.name;
    let mut objects = Vec::new();
    for (ending, text) in [("S", assembler(name, functions)), ("c", resolver(library))] {
        let source = folder.join(format!("{name}.{ending}"));
        fs::write(&source, text)?;
        let object = folder.join(format!("{name}_{ending}.o"));
        run(Step::new("cc")
            .args(["-O2", "-fPIC", "-ffunction-sections", "-c"])
            .arg(&source)
            .arg("-o")
            .arg(&object))?;
        objects.push(object);
    }
    let archive = folder.join(format!("lib{name}.a"));
    if archive.exists() {
        fs::remove_file(&archive)?;
    }
    run(Step::new("ar").arg("rcs").arg(&archive).args(&objects))?;
    for object in objects {
        fs::remove_file(object)?;
    }
    Ok(())
}

fn run(step: Step) -> anyhow::Result<()> {
    match step.run()? {
        0 => Ok(()),
        code => bail!("`{step}` ended with {code}"),
    }
}

/// The C functions that are declared in a file of bindings, each with what it returns.
fn functions(text: &str) -> BTreeMap<String, Returns> {
    let mut found = BTreeMap::new();
    for part in text.split("extern \"C\" {").skip(1) {
        let Some(declaration) = part.trim_start().strip_prefix("fn ") else { continue };
        // The block holds one declaration, which ends with the first semicolon.
        let Some((declaration, _)) = declaration.split_once(';') else { continue };
        let Some((name, rest)) = declaration.split_once('(') else { continue };
        let returned = rest.rsplit_once(") ->").map_or("", |(_, returned)| returned.trim());
        let returns = if returned.contains("c_char") {
            Returns::Text
        } else if returned.is_empty() || returned == "usize" || returned.contains('*') {
            Returns::Number
        } else {
            Returns::Status
        };
        found.insert(name.trim().to_owned(), returns);
    }
    found
}

/// The functions, and the way from each to the resolver.
///
/// A function jumps to what its slot holds. That is `first_NAME` before the first call, which
/// pushes the slot and the name for the resolver. `resolve` keeps every register that arguments can
/// be in, because the real function still has to get them.
fn assembler(library: &str, functions: &BTreeMap<String, Returns>) -> String {
    let mut text = String::from(".text\n");
    for (name, returns) in functions {
        let letter = returns.letter();
        text.push_str(&format!(
            "\
.section .text.{name},\"ax\",@progbits
.globl {name}
.type {name}, @function
{name}:
    jmp *.Lslot_{name}(%rip)
.Lfirst_{name}:
    leaq .Lslot_{name}(%rip), %r11
    pushq %r11
    leaq .Lname_{name}(%rip), %r11
    pushq %r11
    jmp oodbench_{library}_resolve
.size {name}, .-{name}
.section .data.{name},\"aw\",@progbits
.balign 8
.Lslot_{name}: .quad .Lfirst_{name}
.section .rodata.{name},\"a\",@progbits
.Lname_{name}: .asciz \"{letter}{name}\"
"
        ));
    }
    let registers = ["rax", "rdi", "rsi", "rdx", "rcx", "r8", "r9"];
    let mut push = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    push(&format!(".section .text.oodbench_{library}_resolve,\"ax\",@progbits"));
    push(&format!(".hidden oodbench_{library}_look_up"));
    push(&format!("oodbench_{library}_resolve:"));
    for register in registers {
        push(&format!("    pushq %{register}"));
    }
    push("    subq $128, %rsp");
    for i in 0..8 {
        push(&format!("    movdqu %xmm{i}, {}(%rsp)", 16 * i));
    }
    // Above the 128 bytes and the seven registers lie the name, the slot and the return address:
    // 200 bytes to the latter, and the caller's stack was aligned before it was pushed.
    push("    movq 184(%rsp), %rdi");
    push("    movq 192(%rsp), %rsi");
    push(&format!("    call oodbench_{library}_look_up"));
    push("    movq %rax, %r11");
    for i in 0..8 {
        push(&format!("    movdqu {}(%rsp), %xmm{i}", 16 * i));
    }
    push("    addq $128, %rsp");
    for register in registers.iter().rev() {
        push(&format!("    popq %{register}"));
    }
    push("    addq $16, %rsp");
    push("    jmp *%r11");
    push(".section .note.GNU-stack,\"\",@progbits");
    text
}

/// The C half: opens the library, looks a function up, and stands in for one that is missing.
///
/// Two threads may look up at once; both write the same address.
fn resolver(library: &Library) -> String {
    let Library { name, absent, .. } = library;
    let files: Vec<String> = library.files.iter().map(|file| format!("\"{file}\"")).collect();
    let files = files.join(", ");
    format!(
        "\
#include <dlfcn.h>
#include <stddef.h>

static long absent_status(void) {{ return {absent}; }}
static long absent_number(void) {{ return 0; }}
static const char *absent_text(void) {{ return \"the library {name} is not on this machine\"; }}

static void *library(void) {{
    static void *opened;
    static int tried;
    if (!__atomic_load_n(&tried, __ATOMIC_ACQUIRE)) {{
        static const char *const files[] = {{ {files} }};
        void *found = NULL;
        for (size_t i = 0; found == NULL && i < sizeof files / sizeof *files; i++)
            found = dlopen(files[i], RTLD_NOW | RTLD_LOCAL);
        __atomic_store_n(&opened, found, __ATOMIC_RELEASE);
        __atomic_store_n(&tried, 1, __ATOMIC_RELEASE);
    }}
    return __atomic_load_n(&opened, __ATOMIC_ACQUIRE);
}}

__attribute__((visibility(\"hidden\")))
void *oodbench_{name}_look_up(const char *kind_and_name, void **slot) {{
    void *opened = library();
    void *function = opened == NULL ? NULL : dlsym(opened, kind_and_name + 1);
    if (function == NULL)
        switch (*kind_and_name) {{
        case 't': function = (void *)absent_text; break;
        case 'n': function = (void *)absent_number; break;
        default: function = (void *)absent_status; break;
        }}
    __atomic_store_n(slot, function, __ATOMIC_RELEASE);
    return function;
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc writes it: the linked half of a function, after the half that is loaded.
    const BINDINGS: &str = r#"
pub type callback = Option<extern "C" fn(sev: u32)>;
pub fn one(handle: h) -> status {
    #[cfg(feature = "dynamic-loading")]
    {
        type _F = extern "C" fn(h) -> status;
        static _S: OnceLock<_F> = OnceLock::new();
    }
    #[cfg(any(feature = "dynamic-linking", feature = "static-linking"))]
    {
        extern "C" {
            fn one(handle: h, hook: Option<extern "C" fn(x: u32) -> u32>) -> status;
        }
        one(handle)
    }
}
pub fn two() -> *const ::core::ffi::c_char {
    extern "C" {
        fn two() -> *const ::core::ffi::c_char;
    }
}
extern "C" {
    fn three() -> usize;
}
extern "C" {
    fn four(x: u32);
}
"#;

    #[test]
    fn functions_are_those_that_are_linked_with_what_they_return() {
        let found = functions(BINDINGS);
        let expected = [
            ("four", Returns::Number),
            ("one", Returns::Status),
            ("three", Returns::Number),
            ("two", Returns::Text),
        ];
        let expected = expected.map(|(name, returns)| (name.to_owned(), returns));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_function_has_a_slot_that_leads_to_the_resolver_first() {
        let text = assembler("x", &functions(BINDINGS));
        for line in [
            ".globl one",
            "    jmp *.Lslot_one(%rip)",
            ".Lslot_one: .quad .Lfirst_one",
            ".Lname_one: .asciz \"sone\"",
            ".Lname_two: .asciz \"ttwo\"",
            "oodbench_x_resolve:",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
        assert_eq!(text.matches("pushq %").count(), 4 * 2 + 7);
        assert_eq!(text.matches("popq %").count(), 7);
    }

    #[test]
    fn no_two_libraries_share_a_name() {
        for (i, library) in LIBRARIES.iter().enumerate() {
            assert!(LIBRARIES[..i].iter().all(|other| other.name != library.name));
            assert!(resolver(library).contains(&format!("return {};", library.absent)));
        }
    }

    /// What the libraries are for, with a compiler and without NVIDIA's: a program that links
    /// against them starts, and each function answers in its own way; once the library is there,
    /// its functions get all their arguments.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn a_program_starts_without_the_library_and_finds_it_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let real = Box::leak(path("libreal.so").display().to_string().into_boxed_str());
        let files: &'static [&'static str] = Box::leak(Box::new([&*real]));
        let library = Library { name: "real", module: "", files, absent: 77 };
        let declared = "extern \"C\" {\n fn sum(a: i32, j: f64) -> status;\n}\n\
            extern \"C\" {\n fn text() -> *const c_char;\n}\n\
            extern \"C\" {\n fn version() -> usize;\n}\n";
        archive(&library, &functions(declared), folder.path()).unwrap();
        fs::write(
            path("main.c"),
            "#include <stdio.h>\n\
             int sum(int, int, int, int, int, int, int, double, double);\n\
             const char *text(void); unsigned long version(void);\n\
             int main(void) { for (int i = 0; i < 2; i++)\n\
             printf(\"%d %s %lu\\n\", sum(1, 2, 3, 4, 5, 6, 7, 0.5, 0.25), text(), version());\n\
             return 0; }\n",
        )
        .unwrap();
        fs::write(
            path("real.c"),
            "int sum(int a, int b, int c, int d, int e, int f, int g, double x, double y)\n\
             { return a + 10 * b + 100 * c + d + e + f + g + (int)(8 * x) + (int)(400 * y); }\n\
             const char *text(void) { return \"here\"; }\n\
             unsigned long version(void) { return 9; }\n",
        )
        .unwrap();
        let program = path("main");
        let link = Step::new("cc").arg(path("main.c")).arg("-o").arg(&program);
        run(link.arg("-L").arg(folder.path()).arg("-lreal")).unwrap();
        let (code, text) = Step::new(&program).output().unwrap();
        let absent = "77 the library real is not on this machine 0\n";
        assert_eq!((code, text.as_str()), (0, absent.repeat(2).as_str()));
        let shared = Step::new("cc").args(["-shared", "-fPIC"]).arg(path("real.c"));
        run(shared.arg("-o").arg(path("libreal.so"))).unwrap();
        let (code, text) = Step::new(&program).output().unwrap();
        let sum = 1 + 20 + 300 + 4 + 5 + 6 + 7 + 4 + 100;
        assert_eq!((code, text), (0, format!("{sum} here 9\n").repeat(2)));
    }
}
