//! Files of the official sizes are large, but zeros take no space: the tests write sparse ones.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use super::*;
use crate::testing::{Scene, gzip, tar};

const TEST: &str = r#"{ kind = "cifar10", path = "cifar", split = "test" }"#;
const TRAIN: &str = r#"{ kind = "cifar10", path = "cifar", split = "train" }"#;
const FINE: &str = r#"{ kind = "cifar100", path = "cifar", split = "test" }"#;

/// A file of the given size with some bytes in it.
fn sparse(scene: &Scene, name: &str, size: usize, at: usize, bytes: &[u8]) {
    let path = scene.write(name, "");
    let mut file = File::options().write(true).open(path).unwrap();
    file.set_len(size as u64).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn binary_batches_are_read_plane_by_plane() {
    let scene = Scene::new();
    let record = 1 + PIXELS;
    let mut image = vec![0; record];
    (image[0], image[1], image[1 + PLANE], image[1 + 2 * PLANE], image[2]) = (3, 10, 20, 30, 40);
    sparse(&scene, "cifar/test_batch.bin", 10_000 * record, 7 * record, &image);
    let source = scene.open(TEST).unwrap();
    assert_eq!(source.len(), 10_000);
    assert_eq!((source.label(6), source.label(7)), (0, 3));
    assert_eq!(source.id(7), "test/00007");
    let image = source.read(7).unwrap();
    assert_eq!((image.width, image.height), (32, 32));
    assert_eq!(image.pixels[..6], [10, 20, 30, 40, 0, 0]);
}

#[test]
fn the_five_training_batches_are_one_set_in_the_official_folder() {
    let scene = Scene::new();
    let record = 1 + PIXELS;
    for batch in 1..=5 {
        let name = format!("cifar/cifar-10-batches-bin/data_batch_{batch}.bin");
        sparse(&scene, &name, 10_000 * record, 9_999 * record, &[batch]);
    }
    let source = scene.open(TRAIN).unwrap();
    assert_eq!(source.len(), 50_000);
    assert_eq!((source.label(49_999), source.label(20_000), source.label(19_999)), (5, 0, 2));
    std::fs::remove_file(scene.path("cifar/cifar-10-batches-bin/data_batch_4.bin")).unwrap();
    assert_eq!(
        scene.text(&scene.refusal(TRAIN)),
        "find a batch of CIFAR-10: nothing at `DATA/cifar/cifar-10-batches-bin/data_batch_4.bin`"
    );
}

#[test]
fn cifar_100_has_its_fine_labels() {
    let scene = Scene::new();
    let record = 2 + PIXELS;
    sparse(&scene, "cifar/cifar-100-binary/test.bin", 10_000 * record, record, &[19, 99]);
    assert_eq!(scene.open(FINE).unwrap().label(1), 99);
    sparse(&scene, "cifar/cifar-100-binary/test.bin", 10_000 * record, record, &[19, 100]);
    assert_eq!(
        scene.text(&scene.refusal(FINE)),
        "read `DATA/cifar/cifar-100-binary/test.bin`: expected labels below 100, got 100 in \
         record 1"
    );
}

#[test]
fn batches_of_another_size_are_refused() {
    let scene = Scene::new();
    sparse(&scene, "cifar/test_batch.bin", 9_999 * (1 + PIXELS), 0, &[1]);
    assert_eq!(
        scene.text(&scene.refusal(TEST)),
        "read `DATA/cifar/test_batch.bin`: expected 10000 records of 3073 bytes (30730000), got \
         30726927 bytes"
    );
}

/// What Python 2 wrote: `{"data": uint8 array, key: [labels]}` in protocol 2.
fn pickle(key: &str, images: usize, label: u8) -> Vec<u8> {
    let mut bytes = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n".to_vec();
    bytes.extend(b"cnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01M");
    bytes.extend((images as u16).to_le_bytes());
    bytes.extend(b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ");
    bytes.extend(b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T");
    bytes.extend(((images * PIXELS) as u32).to_le_bytes());
    bytes.extend((0..images * PIXELS).map(|at| (at % 251) as u8));
    bytes.extend(b"tbU");
    bytes.push(key.len() as u8);
    bytes.extend(key.as_bytes());
    bytes.extend(b"](");
    (0..images).for_each(|_| bytes.extend([b'K', label]));
    bytes.extend(b"eu.");
    bytes
}

#[test]
fn python_batches_are_read_also_from_the_download() {
    let scene = Scene::new();
    let batch = pickle("labels", 10_000, 6);
    let check = || {
        let source = scene.open(TEST).unwrap();
        assert_eq!((source.len(), source.label(9_999)), (10_000, 6));
        let plane = |channel: usize| ((2 * PIXELS + channel * PLANE) % 251) as u8;
        assert_eq!(source.read(2).unwrap().pixels[..3], [plane(0), plane(1), plane(2)]);
    };
    let archive = scene.write(
        "cifar/cifar-10-python.tar.gz",
        gzip(&tar(&[("cifar-10-batches-py/test_batch", &batch)])),
    );
    check();
    std::fs::remove_file(archive).unwrap();
    scene.write("cifar/cifar-10-batches-py/test_batch", &batch);
    check();
    scene.write("cifar/cifar-10-batches-py/test_batch", pickle("labels", 9_000, 6));
    assert_eq!(
        scene.text(&scene.refusal(TEST)),
        "read `DATA/cifar/cifar-10-batches-py/test_batch`: expected `data` of |u1 [10000, 3072], \
         got |u1 [9000, 3072]"
    );
    scene.write("cifar/cifar-10-batches-py/test_batch", pickle("fine_labels", 10_000, 6));
    assert_eq!(
        scene.text(&scene.refusal(TEST)),
        "read `DATA/cifar/cifar-10-batches-py/test_batch`: expected a dict with `labels`, got a \
         dict of 2"
    );
    scene.write("cifar/cifar-10-batches-py/test_batch", &batch[..1000]);
    let error = scene.refusal(TEST);
    assert!(matches!(error, DatasetError::Pickle { .. }), "{error}");
}

#[test]
fn what_is_missing_is_listed_with_every_place() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("cifar")).unwrap();
    let error = scene.refusal(TEST);
    assert!(error.is_missing());
    assert_eq!(error.looked().len(), 6);
    assert!(
        scene.text(&error).starts_with("find CIFAR-10 (test_batch.bin): nothing at `DATA/cifar")
    );
}
