//! `sample` and `interpolate` on the embedded network, a few steps long.

use oodbench_tests::binary::{Ran, Scene};

/// `sample` of five images into `out`, with further arguments.
fn sample(scene: &Scene, out: &str, args: &[&str]) -> Ran {
    let start = ["sample", "--n", "5", "--steps", "4", "--out", out];
    scene.run(&[&start[..], args].concat())
}

/// The images of a folder, in the order of their names.
fn images(scene: &Scene, folder: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(scene.path(folder)).expect("a folder");
    let mut images: Vec<_> = files
        .map(|file| {
            let path = file.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a file"))
        })
        .collect();
    images.sort();
    images
}

/// Width, height and pixels of a PNG file.
fn decoded(png: &[u8]) -> (u32, u32, Vec<u8>) {
    let image = oodbench_datasets::decode(png).expect("a PNG file");
    (image.width, image.height, image.pixels)
}

#[test]
fn a_folder_of_images_and_a_grid_beside_it() {
    let scene = Scene::new();
    let ran = sample(&scene, "out", &[]);
    ran.succeeded();
    assert_eq!(ran.stdout, "out\nout-grid.png\n");
    assert!(ran.stderr.contains("5 images in "), "{}", ran.stderr);
    let images = images(&scene, "out");
    let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["000000.png", "000001.png", "000002.png", "000003.png", "000004.png"]);
    for (name, png) in &images {
        let (width, height, pixels) = decoded(png);
        assert_eq!((width, height), (16, 16), "{name}");
        assert!(pixels.iter().any(|pixel| *pixel != pixels[0]), "{name} shows nothing");
    }
    // Five images of 16 pixels, four times as large, with two pixels between them.
    let grid = std::fs::read(scene.path("out-grid.png")).expect("a grid");
    let (width, height, pixels) = decoded(&grid);
    assert_eq!((width, height), (5 * 66 + 2, 68));
    let (_, _, first) = decoded(&images[0].1);
    assert_eq!(pixels[3 * (2 * width as usize + 2)..][..3], first[..3]);
}

#[test]
fn batch_and_shard_change_nothing_and_seed_and_method_do() {
    let scene = Scene::new();
    sample(&scene, "whole", &[]).succeeded();
    let whole = images(&scene, "whole");
    sample(&scene, "one", &["--batch-size", "1"]).succeeded();
    assert_eq!(images(&scene, "one"), whole);
    let shard = ["sample", "--n", "3", "--first", "2", "--steps", "4", "--out", "shard"];
    scene.run(&shard).succeeded();
    assert_eq!(images(&scene, "shard"), whole[2..]);
    for (folder, args) in [
        ("seed", ["--seed", "1"]),
        ("ddim", ["--method", "ddim"]),
        ("ndm", ["--method", "NDM4"]),
        ("indexing", ["--indexing", "aligned"]),
        ("beta", ["--beta", "0"]),
    ] {
        sample(&scene, folder, &args).succeeded();
        assert_ne!(images(&scene, folder), whole, "{folder}");
    }
}

#[test]
fn a_class_can_be_asked_for_and_images_of_another_sample_are_noticed() {
    let scene = Scene::new();
    sample(&scene, "three", &["--class", "3"]).succeeded();
    let three = images(&scene, "three");
    sample(&scene, "all", &["--class", "all"]).succeeded();
    let all = images(&scene, "all");
    // Image 3 shows class 3 both times.
    assert_eq!(all[3], three[3]);
    assert_ne!(all[2], three[2]);
    let few = ["sample", "--n", "2", "--steps", "4", "--out", "all"];
    let ran = scene.run(&few);
    ran.succeeded();
    assert!(ran.stderr.contains("warning: `all` holds images of another"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let scene = Scene::new();
    let refused = |args: &[&str], code, parts: &[&str]| {
        sample(&scene, "out", args).refused(code, parts);
    };
    let once = |args: &[&str], parts: &[&str]| scene.run(args).refused(2, parts);
    once(&["sample", "--steps", "0"], &["--steps", "expected a number from 1"]);
    once(&["sample", "--n", "0"], &["--n", "expected a number from 1"]);
    once(&["sample", "--steps", "2000"], &["--steps", "at most 1000", "got 2000"]);
    refused(&["--method", "DDPM"], 2, &["DDIM, PNDM2, PNDM4, NDM1, NDM4, PF", "`DDPM`"]);
    refused(&["--class", "10"], 2, &["class expected below 10, got 10", "hint:"]);
    refused(&["--class", "cat"], 2, &["`random`, `all`, or the number"]);
    refused(&["--indexing", "mine"], 2, &["`reference` or `aligned`"]);
    refused(&["--beta", "nan"], 2, &["--beta", "finite"]);
    refused(&["--method", "PF", "--tolerance", "0"], 2, &["--tolerance", "from 0.0000001 to 1"]);
    refused(&["--first", &usize::MAX.to_string()], 2, &["--first", "at most"]);
    refused(&["--threads", "100000"], 2, &["`--threads` expected from 1 to 1024, got 100000"]);
    refused(&["--config", "x.yml"], 2, &["--weights"]);
    refused(&["--weights", "no.ckpt"], 96, &["no.ckpt"]);
    scene.write("text.ckpt", "these are no weights");
    refused(&["--weights", "text.ckpt"], 96, &["text.ckpt", "safetensors or a PyTorch file"]);
    refused(&["--device", "gpu"], 2, &["`cpu`, `cuda` or `cuda:N`, got `gpu`"]);
    assert!(!scene.path("out").exists(), "something was written");
}

#[test]
fn a_folder_that_cannot_be_written_is_a_failed_write() {
    let scene = Scene::new();
    scene.write("out", "a file in the way");
    sample(&scene, "out", &[]).refused(110, &["`out`", "expected a folder, got a file"]);
}

#[test]
fn a_place_that_cannot_be_written_to_is_refused_before_hours_of_work() {
    let scene = Scene::new();
    scene.write("file", "in the way");
    std::fs::create_dir(scene.path("folder")).expect("a folder");
    // At 1000 steps each of these would take minutes.
    let refused = |args: &str, code, parts: &[&str]| {
        let args: Vec<&str> = args.split(' ').chain(["--steps", "1000"]).collect();
        scene.run(&args).refused(code, parts);
    };
    let is_folder = ["`folder`", "expected a file, got a folder"];
    refused("sample --n 5000 --out new --grid folder", 2, &is_folder);
    refused("interpolate --method NDM4 --out folder", 2, &is_folder);
    refused("interpolate --method NDM4 --out file/i.png", 110, &["`file`", "got a file"]);
    refused("interpolate --method NDM4 --singles file", 110, &["`file`", "got a file"]);
    refused("denoise strip --method NDM4 --out folder", 2, &is_folder);
    assert!(!scene.path("new").exists(), "something was written");
}

/// The network of the embedded benchmark, as a user has a file.
const WEIGHTS: &[u8] = include_bytes!("../../datasets/benchmarks/glyphs/diffusion.safetensors");

#[test]
fn weights_that_were_cut_off_say_so() {
    let scene = Scene::new();
    for length in [100, WEIGHTS.len() / 2, WEIGHTS.len() - 1] {
        scene.write("cut.safetensors", &WEIGHTS[..length]);
        let ran = sample(&scene, "out", &["--weights", "cut.safetensors"]);
        let got = format!("got {length} bytes");
        ran.refused(96, &["cut.safetensors", "the length that its header says", &got, "hint:"]);
    }
}

#[test]
fn a_configuration_of_another_network_is_one_line_whatever_rust_is_asked_to_trace() {
    let scene = Scene::new();
    scene.write("w.safetensors", WEIGHTS);
    let config = "\
Model:
  {struc: DDIM, image_size: 16, num_classes: 10, in_channels: 3, out_ch: 3, ch: 64,
   ch_mult: [1, 1, 2], num_res_blocks: 1, attn_resolutions: [], dropout: 0.0,
   resamp_with_conv: true}
";
    scene.write("wide.yml", config);
    for command in ["sample", "interpolate", "denoise strip"] {
        let args = command.split(' ').chain(["--weights", "w.safetensors", "--config", "wide.yml"]);
        let args: Vec<&str> = args.collect();
        let output = scene.command(&args).env("RUST_BACKTRACE", "1").output().expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(96), "{stderr}");
        assert!(stderr.contains("expected [64], got [32]\n\nhint: the configuration"), "{stderr}");
        assert!(!stderr.contains(" at /"), "{stderr}");
    }
    scene.write("narrow.yml", config.replace("ch: 64", "ch: 33"));
    let ran = sample(&scene, "out", &["--weights", "w.safetensors", "--config", "narrow.yml"]);
    ran.refused(2, &["narrow.yml", "`Model.ch` expected a multiple of 32, got 33"]);
}

#[test]
fn interpolation_leads_from_one_image_to_the_other() {
    let scene = Scene::new();
    let ran = scene.run(&["interpolate", "0", "1", "2", "13", "--steps", "10", "--singles", "one"]);
    ran.succeeded();
    assert_eq!(ran.stdout, "interpolation.png\n");
    let grid = std::fs::read(scene.path("interpolation.png")).expect("a grid");
    let (width, height, _) = decoded(&grid);
    // Two images and nine steps in a row; three rows for each of two pairs, set apart.
    assert_eq!((width, height), (11 * 66 + 2, 6 * 66 + 2 + 4));
    let singles = images(&scene, "one");
    assert_eq!(singles.len(), 2 * 2 + 3 * 2 * 9);
    let pixels = |name: &str| {
        let (_, png) = singles.iter().find(|(found, _)| found == name).expect("an image");
        decoded(png).2
    };
    let apart = |a: &[u8], b: &[u8]| -> u64 {
        a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
    };
    for pair in 1..=2 {
        let [first, second] =
            ["img100", "img200"].map(|name| pixels(&format!("{name}-{pair}.png")));
        for study in [1, 3] {
            let [early, late] = [1, 9].map(|k| pixels(&format!("img{study}-{pair}-{k}.png")));
            assert!(apart(&early, &first) < apart(&early, &second), "study {study}, early");
            assert!(apart(&late, &second) < apart(&late, &first), "study {study}, late");
        }
    }
}

#[test]
fn image_files_are_fitted_to_the_network() {
    let scene = Scene::new();
    sample(&scene, "out", &[]).succeeded();
    // The grid is no square of 16 pixels.
    let args = ["interpolate", "out/000000.png", "out-grid.png", "--steps", "4", "--out", "i.png"];
    scene.run(&args).succeeded();
    let grid = std::fs::read(scene.path("i.png")).expect("a grid");
    let (width, height, _) = decoded(&grid);
    assert_eq!((width, height), (5 * 66 + 2, 3 * 66 + 2));
}

#[test]
fn what_cannot_be_interpolated_is_refused() {
    let scene = Scene::new();
    let refused = |args: &[&str], code, parts: &[&str]| {
        scene.run(&[&["interpolate"], args].concat()).refused(code, parts);
    };
    refused(&["0"], 2, &["two by two, got 1"]);
    refused(&["0", "600"], 2, &["image 600 of `glyphs`", "below 600"]);
    refused(&["0", "no.png"], 96, &["no.png"]);
    scene.write("text.png", "no picture");
    refused(&["0", "text.png"], 96, &["text.png", "expected PNG, JPEG"]);
    refused(&["0", "1", "--steps", "1"], 2, &["two at least, got 1", "hint:"]);
    refused(&["0", "1", "--benchmark", "glyps"], 2, &["did you mean `glyphs`?"]);
    assert!(!scene.path("interpolation.png").exists(), "something was written");
}
