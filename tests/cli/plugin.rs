//! `oodbench plugin`, and libraries that are no packs of this host.

use oodbench_tests::binary::{Scene, target};

#[test]
fn every_detector_that_comes_with_the_program_keeps_the_contract() {
    let scene = Scene::new();
    for pack in ["packs/libposthoc.so", "packs/libdiffood.so"] {
        let path = target().join(pack);
        let ran = scene.run(&["plugin", "check", path.to_str().unwrap()]);
        ran.succeeded();
        assert!(!ran.stdout.contains("FAILED"), "{}", ran.stdout);
    }
}

#[test]
fn a_check_names_what_is_broken_and_survives_it() {
    let scene = Scene::new();
    let pack = target().join("libfaulty.so");
    let ran =
        scene.run(&["plugin", "check", pack.to_str().unwrap(), "--detector", "faulty-segfault"]);
    assert_eq!(ran.code, 103);
    assert!(ran.stdout.contains("SIGSEGV"), "{}", ran.stdout);
}

#[test]
fn the_list_names_every_detector() {
    let ran = Scene::new().run(&["plugin", "list"]);
    ran.succeeded();
    for id in ["msp", "mls", "ebo", "gen", "knn", "mds", "vim", "react", "odin", "diffood"] {
        assert!(ran.stdout.lines().any(|line| line.trim_start().starts_with(id)), "{id}");
    }
}

#[test]
fn a_text_file_is_no_pack() {
    let scene = Scene::new();
    scene.write("libtext.so", "not a library");
    scene.run(&["plugin", "inspect", "libtext.so"]).refused(103, &["libtext.so", "hint:"]);
    scene.bench(&["--method", "msp", "--plugin-path", "libtext.so"]).refused(103, &["libtext.so"]);
}

#[test]
fn a_pack_of_another_epoch_is_refused_in_one_line() {
    let scene = Scene::new();
    scene.write("other.rs", "#[unsafe(no_mangle)] pub static OODBENCH_ABI_EPOCH: u32 = 7;\n");
    let built = std::process::Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(scene.path("libother.so"))
        .arg(scene.path("other.rs"))
        .status()
        .expect("rustc runs");
    assert!(built.success());
    scene.run(&["plugin", "inspect", "libother.so"]).refused(103, &["epoch 7", "hint:"]);
}
