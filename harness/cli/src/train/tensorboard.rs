//! Event files for TensorBoard: what `tensorboard --logdir DIR` draws while a training runs.
//!
//! A file is a row of records (length, its checksum, content, its checksum, as TFRecord has them),
//! each a protobuf message `Event`. The few fields that are used are written by hand; field numbers
//! are those of TensorFlow's `event.proto` and `summary.proto`. Every event is handed to the system
//! at once, so that a killed process loses none.

use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::folder::write_failed;
use crate::exit::Failure;

/// An open event file.
pub(super) struct EventFile {
    folder: PathBuf,
    file: File,
}

/// What is drawn over the steps.
pub(super) enum Summary<'a> {
    Scalar {
        tag: &'a str,
        value: f32,
    },
    /// An image as a PNG file.
    Image {
        tag: &'a str,
        height: usize,
        width: usize,
        png: &'a [u8],
    },
}

impl EventFile {
    /// Begins a file in `folder`, which is created. What earlier processes wrote of steps after
    /// `step` is disowned, since these will come again.
    pub(super) fn create(folder: &Path, step: u64) -> std::result::Result<Self, Failure> {
        Self::begun(folder, step).map_err(|error| write_failed(folder, &error))
    }

    fn begun(folder: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let time = now();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.oodbench",
            time.as_secs(),
            time.subsec_nanos()
        );
        let file = OpenOptions::new().create_new(true).append(true).open(folder.join(name))?;
        let mut events = Self { folder: folder.to_owned(), file };
        // Field 3 of `Event` is the version of the format.
        events.event(step, |event| event.bytes(3, b"brain.Event:2"))?;
        // Field 7 is a `SessionLog`, whose field 1, `status`, is START: TensorBoard drops what it
        // has of this step and later.
        let mut start = Message::default();
        start.varint(1, 1);
        events.event(step + 1, |event| event.bytes(7, &start.0))?;
        Ok(events)
    }

    /// Adds what is known of a step.
    pub(super) fn add(
        &mut self,
        step: u64,
        summaries: &[Summary<'_>],
    ) -> std::result::Result<(), Failure> {
        let mut all = Message::default();
        for summary in summaries {
            let mut value = Message::default();
            match *summary {
                Summary::Scalar { tag, value: number } => {
                    value.bytes(1, tag.as_bytes());
                    value.fixed32(2, number.to_bits());
                }
                Summary::Image { tag, height, width, png } => {
                    value.bytes(1, tag.as_bytes());
                    let mut image = Message::default();
                    image.varint(1, height as u64);
                    image.varint(2, width as u64);
                    // Three channels.
                    image.varint(3, 3);
                    image.bytes(4, png);
                    value.bytes(4, &image.0);
                }
            }
            all.bytes(1, &value.0);
        }
        let added = self.event(step, |event| event.bytes(5, &all.0));
        added.map_err(|error| write_failed(&self.folder, &error))
    }

    fn event(&mut self, step: u64, what: impl FnOnce(&mut Message)) -> Result<()> {
        let mut event = Message::default();
        event.fixed64(1, now().as_secs_f64().to_bits());
        event.varint(2, step);
        what(&mut event);
        self.file.write_all(&record(&event.0))
    }
}

/// Since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A record of a TFRecord file.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(crc32c(&length)).to_le_bytes());
    bytes.extend(content);
    bytes.extend(masked(crc32c(content)).to_le_bytes());
    bytes
}

/// A checksum of data that hold their own checksum is not what it seems; so it is stored changed.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// The cyclic redundancy check of Castagnoli.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// A protobuf message while it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.raw(field << 3 | wire_type);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw(value);
    }

    fn fixed64(&mut self, field: u64, bits: u64) {
        self.key(field, 1);
        self.0.extend(bits.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.raw(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn fixed32(&mut self, field: u64, bits: u32) {
        self.key(field, 5);
        self.0.extend(bits.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46DD_794E);
    }

    /// The checksum again, bit by bit.
    fn check(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82F6_3B78 * (crc & 1));
            }
        }
        let crc = u64::from(!crc);
        ((crc >> 15 | crc << 17) as u32).wrapping_add(0xA282_EAD8)
    }

    /// The contents of the records of a file.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(rest[..4], check(length).to_le_bytes());
            let content = &rest[4..4 + n];
            assert_eq!(rest[4 + n..8 + n], check(content).to_le_bytes());
            records.push(content.to_vec());
            bytes = &rest[8 + n..];
        }
        records
    }

    /// The fields of a message: number, and content without its length.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7F) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    fn only_file(folder: &Path) -> Vec<u8> {
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        assert!(files[0].to_string_lossy().contains("tfevents"));
        std::fs::read(&files[0]).unwrap()
    }

    #[test]
    fn scalars_and_images_stand_where_tensorboard_looks_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 0).unwrap();
        let png: Vec<u8> = (0..255).cycle().take(1000).collect();
        let scalar = Summary::Scalar { tag: "loss/loss", value: 0.25 };
        let image = Summary::Image { tag: "valid/img_p", height: 16, width: 128, png: &png };
        events.add(300, &[scalar, image]).unwrap();
        let records = records(&only_file(folder.path()));
        assert_eq!(records.len(), 3);
        assert_eq!(fields(&records[0])[2], (3, b"brain.Event:2".to_vec()));
        let event = fields(&records[2]);
        assert_eq!(event[1], (2, 300u64.to_le_bytes().to_vec()));
        let summary = fields(&event[2].1);
        let [(1, scalar), (1, image)] = &summary[..] else { panic!("{summary:?}") };
        let scalar = fields(scalar);
        assert_eq!(scalar, [(1, b"loss/loss".to_vec()), (2, 0.25f32.to_le_bytes().to_vec())]);
        let image = fields(&fields(image)[1].1);
        let numbers = [16u64, 128, 3].map(|n| n.to_le_bytes().to_vec());
        for (nth, number) in numbers.into_iter().enumerate() {
            assert_eq!(image[nth], (nth as u64 + 1, number));
        }
        assert_eq!(image[3], (4, png));
    }

    #[test]
    fn a_restart_disowns_the_steps_that_come_again() {
        // From the beginning as well: it may have been killed before its second checkpoint.
        for step in [0, 40] {
            let folder = tempfile::tempdir().unwrap();
            EventFile::create(folder.path(), step).unwrap();
            let records = records(&only_file(folder.path()));
            let event = fields(&records[1]);
            assert_eq!(event[1], (2, (step + 1).to_le_bytes().to_vec()));
            assert_eq!(event[2].0, 7);
            assert_eq!(fields(&event[2].1), [(1, 1u64.to_le_bytes().to_vec())]);
        }
    }
}
