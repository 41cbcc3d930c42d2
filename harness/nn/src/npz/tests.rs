//! Tests of archives: what is written and read, and what is refused.

use super::*;

/// An archive with one entry, as it is.
fn archive(name: &str, content: &[u8], method: CompressionMethod) -> (tempfile::TempDir, Npz) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    zip.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
    let npz = Npz::open(&path).unwrap();
    (folder, npz)
}

fn npy(dict: &str, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(dict.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], dict.as_bytes(), data].concat()
}

fn read(dict: &str, data: &[u8]) -> Result<Array, String> {
    let (_folder, mut npz) = archive("x.npy", &npy(dict, data), CompressionMethod::Deflated);
    npz.read("x").map_err(|error| error.to_string())
}

#[test]
fn what_was_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/a.npz");
    let write = || {
        let mut npz = NpzWriter::create(&path).unwrap();
        npz.array("mu", &[3], Values::F64(&[1.0, -2.5, f64::MIN_POSITIVE])).unwrap();
        npz.array("sigma", &[2, 1], Values::F32(&[0.5, 3.0])).unwrap();
        npz.array("n", &[], Values::I64(&[-7])).unwrap();
        npz.array("bytes", &[2], Values::U8(&[0, 255])).unwrap();
        npz.finish().unwrap();
        std::fs::read(&path).unwrap()
    };
    assert_eq!(write(), write());
    let mut npz = Npz::open(&path).unwrap();
    assert_eq!(npz.names(), ["mu", "sigma", "n", "bytes"]);
    assert_eq!(npz.read("mu").unwrap().to_f64(), [1.0, -2.5, f64::MIN_POSITIVE]);
    assert_eq!(npz.shape("sigma").unwrap(), [2, 1]);
    assert_eq!(npz.read("sigma").unwrap().to_f32(), [0.5, 3.0]);
    assert_eq!(npz.read("n").unwrap().to_f64(), [-7.0]);
    assert_eq!(npz.read("bytes").unwrap().to_f64(), [0.0, 255.0]);
    let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn nothing_is_left_of_a_file_that_was_not_finished() {
    let folder = tempfile::tempdir().unwrap();
    let mut npz = NpzWriter::create(&folder.path().join("a.npz")).unwrap();
    let error = npz.array("x", &[3], Values::U8(&[1, 2])).unwrap_err().to_string();
    assert!(error.contains("shape [3] expected 3 values, got 2"), "{error}");
    drop(npz);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn fortran_order_and_byte_order_are_undone() {
    let dict = "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n";
    let array = read(dict, &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0xff, 0xff]).unwrap();
    assert_eq!(array.shape, [2, 3]);
    assert_eq!(array.to_f64(), [1.0, 2.0, 3.0, 4.0, 5.0, -1.0]);
}

#[test]
fn damaged_arrays_are_refused() {
    let check = |dict: &str, data: &[u8], part: &str| {
        let error = read(dict, data).unwrap_err();
        assert!(error.contains("`x`") && error.contains(part), "{dict}: {error}");
    };
    let plain = "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n";
    check(plain, &[0; 15], "expected 16 bytes, got 15");
    check(plain, &[0; 17], "expected 16 bytes, got 17");
    check("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", b"", "`|O`");
    check("{'descr': [('a', '<f8')], 'fortran_order': False}", b"", "header");
    check("{'descr': '<f8', 'shape': (2,)}", &[0; 16], "fortran_order");
    let huge =
        format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({0}, {0})}}", 1u64 << 62);
    check(&huge, b"", "expected at most");
}

#[test]
fn an_array_that_is_not_there_is_named_with_those_that_are() {
    let (_folder, mut npz) = archive("arr_0.npy", b"x", CompressionMethod::Stored);
    let error = npz.read("mu").unwrap_err().to_string();
    assert!(error.contains("expected an array `mu`, got `arr_0`"), "{error}");
    assert!(npz.read("arr_0").is_err());
}

#[test]
fn a_file_that_is_no_archive_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    std::fs::write(&path, b"PK\x03\x04 and no more").unwrap();
    assert!(matches!(Npz::open(&path), Err(NpzError::Archive { .. })));
    assert!(matches!(Npz::open(folder.path().join("b").as_path()), Err(NpzError::Read { .. })));
}
