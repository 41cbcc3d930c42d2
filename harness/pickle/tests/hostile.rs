//! Pickles that nobody writes by accident: they have to come back as errors, quickly.

use std::thread;

use oodbench_pickle::{MAX_DEPTH, MAX_VALUES, PickleError, Value, parse};

/// A list in a list in a list, `depth` of them.
fn nested_lists(depth: usize) -> Vec<u8> {
    [vec![b']'; depth], vec![b'a'; depth - 1], vec![b'.']].concat()
}

/// C(C(C(None))), `depth` of them. Each is two levels, itself and the tuple of its arguments.
fn nested_objects(depth: usize) -> Vec<u8> {
    let class = b"cm\nC\nq\x00";
    [&class[..], &b"h\x00".repeat(depth - 1), b"N", &b"\x85R".repeat(depth), b"."].concat()
}

/// Persistent ids of persistent ids.
fn nested_ids(depth: usize) -> Vec<u8> {
    [&b"N"[..], &b"Q".repeat(depth), b"."].concat()
}

#[test]
fn nesting_beyond_the_limit_is_an_error() {
    for depth in [MAX_DEPTH + 2, 1_000_000] {
        for pickle in [nested_lists(depth), nested_objects(depth), nested_ids(depth)] {
            assert_eq!(parse(&pickle), Err(PickleError::TooDeep { limit: MAX_DEPTH }));
        }
    }
}

#[test]
fn nesting_at_the_limit_fits_a_small_stack() {
    let work = || {
        for pickle in
            [nested_lists(MAX_DEPTH + 1), nested_objects(MAX_DEPTH / 2), nested_ids(MAX_DEPTH)]
        {
            let (value, consumed) = parse(&pickle).unwrap();
            assert_eq!(consumed, pickle.len());
            assert_eq!(value.clone(), value);
            assert!(format!("{value:#?}").len() > MAX_DEPTH);
        }
    };
    thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn a_value_that_contains_itself_is_an_error() {
    for pickle in [
        &b"]q\x00h\x00a."[..],
        b"}q\x00K\x01h\x00s.",
        b"]q\x00}q\x01K\x01h\x00sa.",
        b"cm\nC\n)Rq\x00h\x00b.",
        b"cm\nC\n)Rq\x00(h\x00e.",
        b"\x8fq\x00(h\x00\x90.",
    ] {
        assert_eq!(parse(pickle), Err(PickleError::Cycle));
    }
    // A knot that the result does not reach is of no concern.
    assert_eq!(parse(b"]q\x00h\x00a0N."), Ok((Value::None, 9)));
}

#[test]
fn doubling_again_and_again_is_an_error() {
    for levels in [60, 150] {
        // x = (x, x)
        let pickle = [&b"N"[..], &b"2\x86".repeat(levels), b"."].concat();
        assert_eq!(parse(&pickle), Err(PickleError::TooLarge { limit: MAX_VALUES }));
    }
    let pickle = [&b"N"[..], &b"2\x86".repeat(10), b"."].concat();
    assert!(parse(&pickle).is_ok());
}

#[test]
fn a_text_encoded_again_and_again_is_an_error() {
    let mut pickle = b"(c_codecs\nencode\nq\x00X\x00\x00\x10\x00".to_vec();
    pickle.extend(vec![b'x'; 1 << 20]);
    pickle.extend(b"q\x01X\x06\x00\x00\x00latin1q\x02");
    for _ in 0..10_000 {
        pickle.extend(b"h\x00h\x01h\x02\x86R");
    }
    pickle.extend(b"l.");
    assert!(matches!(parse(&pickle), Err(PickleError::TooLarge { .. })));
}

#[test]
fn lengths_that_are_not_there_allocate_nothing() {
    for opcode in [b"\x8d", b"\x8e", b"\x95", b"\x96"] {
        for len in [u64::MAX, 1 << 62, 1 << 40, 10] {
            let pickle = [&opcode[..], &len.to_le_bytes(), b"abc"].concat();
            assert_eq!(
                parse(&pickle),
                Err(PickleError::Truncated { offset: 9, expected: len, got: 3 })
            );
        }
    }
    for opcode in [b'T', b'B', b'X', 0x8b] {
        let pickle = [&[opcode][..], &i32::MAX.to_le_bytes(), b"abc"].concat();
        assert!(matches!(parse(&pickle), Err(PickleError::Truncated { got: 3, .. })));
    }
    for opcode in [b'T', 0x8b] {
        let pickle = [&[opcode][..], &(-1_i32).to_le_bytes(), b"abc"].concat();
        assert!(matches!(parse(&pickle), Err(PickleError::InvalidText { .. })));
    }
}

#[test]
fn memo_indices_may_be_anything() {
    assert_eq!(parse(b"K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.").unwrap().0, Value::Int(5));
    assert_eq!(parse(b"K\x05p18446744073709551615\n.").unwrap().0, Value::Int(5));
    assert!(parse(b"K\x05p18446744073709551616\n.").is_err());
    assert!(parse(b"K\x05p-1\n.").is_err());
}

#[test]
fn every_pickle_cut_short_is_an_error() {
    for protocol in 0..6 {
        for name in ["everything", "arrays"] {
            let path =
                format!("{}/tests/fixtures/{name}.{protocol}.pkl", env!("CARGO_MANIFEST_DIR"));
            let pickle = std::fs::read(path).unwrap();
            for len in 0..pickle.len() {
                assert!(parse(&pickle[..len]).is_err(), "{name}.{protocol} at {len}");
            }
        }
    }
}

#[test]
fn any_bytes_come_back() {
    let mut state = 7_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 33
    };
    // Opcodes and small arguments, so that programs get somewhere before they fail.
    let alphabet =
        b"(.0122NNJKKKMIFSTUXCB]}))lltdaaeessuupqqhhgRRRccibboQQP\n\n\x00\x00\x01\x01\x02\x05abc'1\
        \x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x92\x93\x94\x94\x95";
    let mut n_read = 0;
    for _ in 0..200_000 {
        let len = random() as usize % 40;
        let letters = (0..len).map(|_| alphabet[random() as usize % alphabet.len()]);
        let pickle: Vec<u8> = letters.chain(*b".").collect();
        if let Ok((value, consumed)) = parse(&pickle) {
            assert!(consumed <= pickle.len());
            assert!(!format!("{value:?} {}", value.kind()).is_empty());
            n_read += 1;
        }
    }
    assert!(n_read > 1000, "{n_read}");
}
