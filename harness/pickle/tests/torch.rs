//! Checkpoints as PyTorch writes them, and what happens to damaged ones.
//!
//! The files were made by PyTorch 2.15:
//!
//! ```python
//! import collections, torch
//! base = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 2
//! state = collections.OrderedDict()
//! state["module.whole"] = base
//! state["module.rows"] = base[1:]
//! state["module.transposed"] = base.t()
//! state["module.every_other"] = base[::2, 1::2]
//! state["module.repeated"] = torch.tensor([[1.5]]).expand(2, 3)
//! state["module.half"] = torch.tensor([1.0, -2.0], dtype=torch.float16)
//! state["module.bfloat"] = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
//! state["module.count"] = torch.tensor(7)
//! state["module.mask"] = torch.tensor([True, False])
//! state["module.parameter"] = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
//! state["module.empty"] = torch.zeros(0, 3)
//! torch.save({"epoch": 3, "state_dict": state}, "legacy.pt", _use_new_zipfile_serialization=False)
//! few = collections.OrderedDict((k, state[k]) for k in list(state)[:4] + ["module.half", "module.count"])
//! # The name of the file becomes the name of the archive; see `zip_archives_of_any_name_are_read`.
//! torch.save([few, {"step": 1}], "archive_21_letters_xx.pt")
//! ```

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::{
    borrow::Cow,
    io::{Cursor, Read, Write},
    sync::Arc,
};

use oodbench_pickle::{
    Value,
    torch::{Dtype, TensorRef, TorchFile, flatten_state_dict},
};
use zip::{
    CompressionMethod, ZipArchive, ZipWriter,
    read::{ArchiveOffset, Config},
    write::SimpleFileOptions,
};

const LEGACY: &[u8] = include_bytes!("fixtures/legacy.pt");
const ARCHIVE: &[u8] = include_bytes!("fixtures/archive_21_letters_xx.pt");

/// Type, shape and little-endian bytes of a tensor, and whether the bytes are the file's own.
type Found = (Dtype, Vec<usize>, Vec<u8>, bool);

#[track_caller]
fn read(file: &TorchFile<'_>, weights: &[(String, Arc<TensorRef>)], name: &str) -> Found {
    let (_, tensor) = weights.iter().find(|(found, _)| found == name).unwrap();
    let elements = file.read_tensor(tensor).unwrap();
    let is_borrowed = matches!(elements, Cow::Borrowed(_));
    (tensor.dtype, tensor.shape.clone(), elements.into_owned(), is_borrowed)
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The tensors that both files hold, all but two of them in one storage.
#[track_caller]
fn check_shared_part(bytes: &[u8], is_borrowed: bool) {
    let file = TorchFile::parse(bytes).unwrap();
    let weights = file.state_dict().unwrap();
    let check = |name: &str, dtype, shape: &[usize], elements: Vec<u8>, is_borrowed| {
        assert_eq!(
            read(&file, &weights, name),
            (dtype, shape.to_vec(), elements, is_borrowed),
            "{name}"
        );
    };
    let whole: Vec<f32> = (0..12_u8).map(|n| f32::from(n) / 2.0).collect();
    check("whole", Dtype::F32, &[3, 4], f32s(&whole), is_borrowed);
    check("rows", Dtype::F32, &[2, 4], f32s(&whole[4..]), is_borrowed);
    let transposed = [0.0, 2.0, 4.0, 0.5, 2.5, 4.5, 1.0, 3.0, 5.0, 1.5, 3.5, 5.5];
    check("transposed", Dtype::F32, &[4, 3], f32s(&transposed), false);
    check("every_other", Dtype::F32, &[2, 2], f32s(&[0.5, 1.5, 4.5, 5.5]), false);
    check("half", Dtype::F16, &[2], vec![0x00, 0x3c, 0x00, 0xc0], is_borrowed);
    check("count", Dtype::I64, &[], 7_i64.to_le_bytes().to_vec(), is_borrowed);
    assert_eq!(weights[0].1.storage, weights[2].1.storage);
}

#[test]
fn the_legacy_format_is_read() {
    check_shared_part(LEGACY, true);
    let file = TorchFile::parse(LEGACY).unwrap();
    assert_eq!(file.value().get("epoch"), Some(&Value::Int(3)));
    let weights = file.state_dict().unwrap();
    assert_eq!(weights.len(), 11);
    let check = |name: &str, dtype, shape: &[usize], elements: &[u8]| {
        let (found_dtype, found_shape, found, _) = read(&file, &weights, name);
        assert_eq!((found_dtype, &found_shape[..], &found[..]), (dtype, shape, elements), "{name}");
    };
    check("repeated", Dtype::F32, &[2, 3], &f32s(&[1.5; 6]));
    check("bfloat", Dtype::BF16, &[2], &[0x80, 0x3f, 0x00, 0xc0]);
    check("mask", Dtype::Bool, &[2], &[1, 0]);
    check("parameter", Dtype::F64, &[2], &[1.0_f64.to_le_bytes(); 2].concat());
    check("empty", Dtype::F32, &[0, 3], &[]);
}

/// `zip` 9.8 finds the wrong first entry of this archive when it has to find where the archive starts:
/// with a name of 21 letters, the entry of `data.pkl` is as long as the ZIP64 records at the end.
#[test]
fn zip_archives_of_any_name_are_read() {
    check_shared_part(ARCHIVE, true);
    let file = TorchFile::parse(ARCHIVE).unwrap();
    let names: Vec<String> = file.state_dict().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["whole", "rows", "transposed", "every_other", "half", "count"]);
}

/// The parts of the archive, put together again as `change` wants them.
fn repacked(
    method: CompressionMethod,
    change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut reader = ZipArchive::with_config(config, Cursor::new(ARCHIVE)).unwrap();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..reader.len() {
        let mut entry = reader.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut part = Vec::new();
        entry.read_to_end(&mut part).unwrap();
        if let Some(part) = change(name.rsplit_once("xx/").unwrap().1, part) {
            writer
                .start_file(name, SimpleFileOptions::default().compression_method(method))
                .unwrap();
            writer.write_all(&part).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn an_archive_that_was_compressed_since_is_read() {
    let bytes = repacked(CompressionMethod::Deflated, |_, part| Some(part));
    check_shared_part(&bytes, false);
}

#[test]
fn numbers_of_big_endian_machines_are_turned_round() {
    let bytes = repacked(CompressionMethod::Stored, |name, mut part| {
        match name {
            "byteorder" => part = b"big".to_vec(),
            "data/0" => part.chunks_exact_mut(4).for_each(<[u8]>::reverse),
            "data/1" => part.chunks_exact_mut(2).for_each(<[u8]>::reverse),
            "data/2" => part.chunks_exact_mut(8).for_each(<[u8]>::reverse),
            _ => {}
        }
        Some(part)
    });
    check_shared_part(&bytes, false);
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    let error = TorchFile::parse(bytes).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn other_files_are_refused_by_name() {
    check_refused(b"", "expected a PyTorch checkpoint, got an empty file");
    check_refused(b"GIF89a", "expected a PyTorch checkpoint, got some other file");
    check_refused(
        b"\x80\x02]q\x00.",
        "expected a PyTorch checkpoint, got a pickle of something else",
    );
    check_refused(
        b"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\":{}}",
        "expected a PyTorch checkpoint, got what may be a safetensors file",
    );
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    check_refused(
        &tar,
        "tar format of PyTorch before 0.1.10 is not supported\n\n\
         hint: load and save it once with a later PyTorch",
    );
    let no_pickle =
        repacked(CompressionMethod::Stored, |name, part| (name != "data.pkl").then_some(part));
    check_refused(
        &no_pickle,
        "expected a PyTorch checkpoint, got a zip archive without `data.pkl`",
    );
    let odd = repacked(CompressionMethod::Stored, |name, part| {
        Some(if name == "byteorder" { b"middle".to_vec() } else { part })
    });
    check_refused(&odd, "`byteorder` of the checkpoint expected `little` or `big`, got `middle`");
}

#[test]
fn missing_and_short_storages_are_named() {
    let check = |bytes: &[u8], expected: &str| {
        let file = TorchFile::parse(bytes).unwrap();
        let (_, whole) = &file.state_dict().unwrap()[0];
        assert_eq!(file.read_tensor(whole).unwrap_err().to_string(), expected);
    };
    let missing =
        repacked(CompressionMethod::Stored, |name, part| (name != "data/0").then_some(part));
    check(&missing, "storage `0` is not in the checkpoint");
    let short = repacked(CompressionMethod::Stored, |name, part| {
        Some(if name == "data/0" { part[..44].to_vec() } else { part })
    });
    check(&short, "tensor [3, 4] at 0 expected 48 bytes in storage `0`, got 44");
}

#[test]
fn tensors_that_repeat_beyond_reason_are_refused() {
    let file = TorchFile::parse(ARCHIVE).unwrap();
    let tensor = |shape: &[usize], strides: &[usize]| TensorRef {
        dtype: Dtype::F32,
        storage: "0".into(),
        offset: 0,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let huge = usize::MAX;
    for shape in [&[1 << 40][..], &[huge, huge], &[1 << 20, 1 << 20, 3]] {
        let error = file.read_tensor(&tensor(shape, &vec![0; shape.len()])).unwrap_err();
        assert!(error.to_string().ends_with("of storage `0` beyond reason"), "{error}");
    }
    assert_eq!(file.read_tensor(&tensor(&[huge, 0, huge], &[0, 0, 0])).unwrap().len(), 0);
    assert_eq!(file.read_tensor(&tensor(&[3, 2], &[0, 0])).unwrap().len(), 24);
}

#[test]
fn checkpoints_cut_short_are_refused() {
    for len in 0..LEGACY.len() {
        assert!(TorchFile::parse(&LEGACY[..len]).is_err(), "{len}");
    }
    for len in 0..ARCHIVE.len() {
        assert!(TorchFile::parse(&ARCHIVE[..len]).is_err(), "{len}");
    }
}

#[test]
fn damaged_checkpoints_do_no_harm() {
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for original in [LEGACY, ARCHIVE] {
        for _ in 0..4000 {
            let mut bytes = original.to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                bytes[at] = match random(3) {
                    0 => random(256) as u8,
                    1 => 0xff,
                    _ => original[random(original.len())],
                };
            }
            // Whatever comes of it, it comes back.
            let Ok(file) = TorchFile::parse(&bytes) else { continue };
            let _ = format!("{:?}", file.value());
            let Ok(weights) = flatten_state_dict(file.value()) else { continue };
            for (_, tensor) in weights {
                let _ = file.read_tensor(&tensor);
            }
        }
    }
}
