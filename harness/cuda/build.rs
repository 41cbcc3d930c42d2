//! Compiles the kernels to PTX, if the feature `cuda` asks for it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    #[cfg(feature = "cuda")]
    compile();
}

#[cfg(feature = "cuda")]
fn compile() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = cudaforge::KernelBuilder::new()
        .source_dir("kernels")
        // Headers count too when it is decided whether a kernel is compiled again.
        .watch(["kernels"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .and_then(|bindings| bindings.write(out.join("ptx.rs")));
    if let Err(error) = built {
        panic!(
            "compile the CUDA kernels: {error}\n\nhint: put `nvcc` of CUDA 12 or 13 on the PATH"
        );
    }
}
