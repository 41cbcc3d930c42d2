//! Packs are prepared from a source that counts its reads.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::decode::RgbImage;
use crate::fingerprint::Fingerprint;
use crate::progress::NoProgress;
use crate::testing::{Scene, names};

/// Images of one colour: the index.
struct Drawn {
    count: usize,
    size: fn(usize) -> (u32, u32),
    reads: AtomicUsize,
}

impl Drawn {
    fn new(count: usize) -> Self {
        Self { count, size: |_| (4, 3), reads: AtomicUsize::new(0) }
    }
}

impl ImageSource for Drawn {
    fn len(&self) -> usize {
        self.count
    }

    fn id(&self, index: usize) -> String {
        format!("bild-ä/{index}")
    }

    fn label(&self, index: usize) -> i64 {
        index as i64 - 1
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if index == 13 && self.count == 14 {
            return Err(DatasetError::malformed(Path::new("13"), "an image", "bad luck"));
        }
        let (width, height) = (self.size)(index);
        let pixels = vec![index as u8; (width * height * 3) as usize];
        Ok(RgbImage { width, height, pixels })
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut parts = Fingerprinter::new("drawn");
        parts.number(self.count as i64);
        parts.finish()
    }
}

fn request<'a>(cache_dir: &'a Path, limit: Option<usize>) -> PrepareRequest<'a> {
    let preprocess = Preprocess { resize: None, crop: None };
    PrepareRequest { name: "a set", preprocess, limit, cache_dir, progress: &NoProgress }
}

#[test]
fn a_pack_holds_pixels_labels_and_ids_in_order() {
    let scene = Scene::new();
    let source = Drawn::new(5000);
    let pack = prepare(&source, &request(&scene.path("cache"), None)).unwrap();
    assert_eq!((pack.len(), pack.width(), pack.height()), (5000, 4, 3));
    assert_eq!(pack.labels()[..3], [-1, 0, 1]);
    assert_eq!((pack.id(0), pack.id(4999)), ("bild-ä/0", "bild-ä/4999"));
    assert_eq!(pack.name(), "a set");
    for index in 0..5000 {
        assert_eq!(pack.pixels(index..index + 1), [index as u8; 36]);
    }
    pack.verify().unwrap();
    assert_eq!(names(&scene.path("cache")).len(), 1);
}

#[test]
fn an_earlier_pack_is_found_without_reading() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    let first = prepare(&Drawn::new(50), &request(&cache, None)).unwrap();
    let again = Drawn::new(50);
    let second = prepare(&again, &request(&cache, Some(70))).unwrap();
    assert_eq!(first.content_hash(), second.content_hash());
    assert_eq!(second.path(), pack_path(&again, &request(&cache, None)));
    assert_eq!(again.reads.into_inner(), 0);
}

#[test]
fn a_limit_takes_images_evenly_from_the_whole_set() {
    let scene = Scene::new();
    let pack = prepare(&Drawn::new(10), &request(&scene.path("cache"), Some(4))).unwrap();
    assert_eq!((0..4).map(|nth| pack.pixels(nth..nth + 1)[0]).collect::<Vec<_>>(), [0, 2, 5, 7]);
    assert_eq!(pack.labels(), [-1, 1, 4, 6]);
    assert_eq!(pack.id(3), "bild-ä/7");
}

#[test]
fn equal_images_have_equal_content_however_they_were_named() {
    let scene = Scene::new();
    let hash = |limit, name| {
        let cache = scene.path("cache");
        let request = PrepareRequest { name, ..request(&cache, limit) };
        prepare(&Drawn::new(10), &request).unwrap().content_hash().to_owned()
    };
    assert_eq!(hash(None, "one"), hash(None, "other"));
    assert_ne!(hash(None, "one"), hash(Some(9), "one"));
}

#[test]
fn images_of_different_sizes_need_a_crop() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    let mut source = Drawn::new(9);
    source.size = |index| if index < 5 { (4, 3) } else { (3, 4) };
    let error = prepare(&source, &request(&cache, None)).err().unwrap();
    assert_eq!(
        error.to_string(),
        "prepare `bild-ä/5`: expected 4x3 like the images before it, got 3x4"
    );
    assert!(error.hint().is_some());
    assert!(names(&cache).is_empty());
    let preprocess = Preprocess { resize: None, crop: Some(3) };
    let pack = prepare(&source, &PrepareRequest { preprocess, ..request(&cache, None) }).unwrap();
    assert_eq!((pack.width(), pack.height()), (3, 3));
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    let error = prepare(&Drawn::new(14), &request(&cache, None)).err().unwrap();
    assert_eq!(error.to_string(), "read `13`: expected an image, got bad luck");
    assert!(names(&cache).is_empty());
    assert!(prepare(&Drawn::new(0), &request(&cache, None)).is_err());
}

#[test]
fn what_a_killed_process_left_is_written_over() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    let source = Drawn::new(20);
    let pack = pack_path(&source, &request(&cache, None));
    let partial = format!("cache/.{}.partial", pack.file_name().unwrap().to_string_lossy());
    scene.write(&partial, vec![1; 100_000]);
    prepare(&source, &request(&cache, None)).unwrap().verify().unwrap();
    assert_eq!(names(&cache).len(), 1);
}

#[test]
fn preparing_the_same_set_at_once_does_it_once() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    for round in 1..20 {
        let source = Drawn::new(round * 100 + 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let pack = prepare(&source, &request(&cache, None)).unwrap();
                    pack.verify().unwrap();
                });
            }
        });
        // Every image once, and the first one for its size.
        assert_eq!(source.reads.load(Ordering::Relaxed), source.count + 1);
        assert_eq!(names(&cache).len(), round);
    }
}

#[test]
fn damaged_packs_are_refused() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    let path = prepare(&Drawn::new(3), &request(&cache, None)).unwrap().path().to_owned();
    let whole = std::fs::read(&path).unwrap();
    let damaged = |name: &str, bytes: &[u8]| Pack::open(&scene.write(name, bytes));

    let error = damaged("cut", &whole[..whole.len() - 1]).err().unwrap();
    assert!(scene.text(&error).starts_with("open pack `DATA/cut`: expected a whole safetensors"));
    assert!(damaged("empty", b"").is_err());
    assert!(damaged("text", b"this is not a pack at all").is_err());

    let mut other = whole.clone();
    let version = other.windows(17).position(|window| window == b"oodbench_pack\":\"1").unwrap();
    other[version + 16] = b'2';
    let error = damaged("version", &other).err().unwrap();
    assert_eq!(scene.text(&error), "open pack `DATA/version`: expected layout version 1, got 2");

    let mut flipped = whole;
    let last = flipped.len() - 40;
    flipped[last] ^= 1;
    let error = damaged("flipped", &flipped).unwrap().verify().unwrap_err();
    assert!(matches!(error, DatasetError::PackContent { .. }));
    assert_eq!(error.hint().unwrap(), "delete the pack; it is prepared again");
}
