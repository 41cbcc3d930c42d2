//! Pickles as Python writes them, in every protocol.
//!
//! The files `everything.<protocol>.pkl` and `arrays.<protocol>.pkl` were made by Python 3.11 and
//! numpy 2.4:
//!
//! ```python
//! import collections, pickle, numpy as np
//! shared = ["x", b"\x00\xff"]
//! everything = {
//!     "none": None, "truths": (True, False), "ints": [0, -1, 255, 65536, -(2**31), 2**63 - 1],
//!     "big": [2**63, -(2**100)], "floats": [1.5, float("-inf"), 5e-324], "text": "a\n\\u00e4 ä€🐱",
//!     "bytes": [b"", b"\x00\x80\xff"], "set": {7}, "frozen": frozenset([8]), "shared": (shared, shared, ()),
//!     "ordered": collections.OrderedDict([("b", 1), ("a", 2)]), "counter": collections.Counter("aab"),
//!     "default": collections.defaultdict(list, {3: [4]}), ("tuple", 1): {}, "complex": 1j,
//! }
//! data = np.arange(6, dtype=np.uint8).reshape(2, 3)
//! arrays = [data, np.asfortranarray(data), np.array([1.5, -2], dtype=">f8"), np.float32(2.5), np.array(["ab", "c"])]
//! for protocol in range(6):
//!     open(f"everything.{protocol}.pkl", "wb").write(pickle.dumps(everything, protocol))
//!     open(f"arrays.{protocol}.pkl", "wb").write(pickle.dumps(arrays, protocol))
//! ```

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use oodbench_pickle::{PickleError, Value, numpy::NdArray, parse};

const EVERYTHING: [&[u8]; 6] = [
    include_bytes!("fixtures/everything.0.pkl"),
    include_bytes!("fixtures/everything.1.pkl"),
    include_bytes!("fixtures/everything.2.pkl"),
    include_bytes!("fixtures/everything.3.pkl"),
    include_bytes!("fixtures/everything.4.pkl"),
    include_bytes!("fixtures/everything.5.pkl"),
];

const ARRAYS: [&[u8]; 6] = [
    include_bytes!("fixtures/arrays.0.pkl"),
    include_bytes!("fixtures/arrays.1.pkl"),
    include_bytes!("fixtures/arrays.2.pkl"),
    include_bytes!("fixtures/arrays.3.pkl"),
    include_bytes!("fixtures/arrays.4.pkl"),
    include_bytes!("fixtures/arrays.5.pkl"),
];

/// The value of a pickle that takes all of the bytes.
#[track_caller]
fn whole(bytes: &[u8]) -> Value {
    let (value, consumed) = parse(bytes).unwrap();
    assert_eq!(consumed, bytes.len());
    value
}

fn ints(values: &[i64]) -> Value {
    Value::List(values.iter().copied().map(Value::Int).collect())
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.into())
}

#[test]
fn every_protocol_holds_the_same_data() {
    let newest = whole(EVERYTHING[5]);
    for (protocol, pickle) in EVERYTHING.iter().enumerate() {
        assert_eq!(whole(pickle), newest, "protocol {protocol}");
    }
}

#[test]
fn each_kind_of_value_is_what_it_was_in_python() {
    let value = whole(EVERYTHING[2]);
    let get = |key: &str| value.get(key).unwrap_or_else(|| panic!("no `{key}`"));
    assert_eq!(value.entries().unwrap().len(), 15);
    assert_eq!(*get("none"), Value::None);
    assert_eq!(*get("truths"), Value::Tuple([Value::Bool(true), Value::Bool(false)].into()));
    assert_eq!(*get("ints"), ints(&[0, -1, 255, 65536, -(1 << 31), i64::MAX]));
    let mut below = [0; 13];
    below[12] = 0xf0;
    let above = [0, 0, 0, 0, 0, 0, 0, 0x80, 0];
    let big = [Value::BigInt(above.into()), Value::BigInt(below.into())];
    assert_eq!(*get("big"), Value::List(big.into()));
    let floats = [1.5, f64::NEG_INFINITY, 5e-324].map(Value::Float);
    assert_eq!(*get("floats"), Value::List(floats.into()));
    assert_eq!(*get("text"), Value::Str("a\n\\u00e4 ä€🐱".into()));
    assert_eq!(*get("bytes"), Value::List([bytes(b""), bytes(b"\x00\x80\xff")].into()));
    assert_eq!(*get("set"), Value::Set([Value::Int(7)].into()));
    assert_eq!(*get("frozen"), Value::Set([Value::Int(8)].into()));
    assert_eq!(get("ordered").get("a"), Some(&Value::Int(2)));
    assert_eq!(get("ordered").entries().unwrap()[0].0.as_str(), Some("b"));
    assert_eq!(get("counter").get("a"), Some(&Value::Int(2)));
    assert_eq!(get("default").entries(), Some(&[(Value::Int(3), ints(&[4]))][..]));
    let complex = get("complex").as_object().unwrap();
    assert!(complex.global().unwrap().is("builtins", "complex"));
    assert_eq!(complex.args(), [Value::Float(0.0), Value::Float(1.0)]);
}

#[test]
fn what_was_one_object_is_still_kept_once() {
    for pickle in EVERYTHING {
        let value = whole(pickle);
        match value.get("shared").and_then(Value::as_tuple) {
            Some([Value::List(first), Value::List(second), Value::Tuple(empty)]) => {
                assert!(std::ptr::eq(first.as_ptr(), second.as_ptr()));
                assert_eq!(first.len(), 2);
                assert!(empty.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn arrays_are_read_from_every_protocol() {
    for (protocol, pickle) in ARRAYS.iter().enumerate() {
        let value = whole(pickle);
        let arrays =
            value.as_list().unwrap().iter().map(|array| NdArray::from_value(array).unwrap());
        let arrays: Vec<NdArray> = arrays.collect();
        let check = |at: usize, descr: &str, shape: &[usize], fortran_order, data: &[u8]| {
            let found = &arrays[at];
            assert_eq!(found.descr, descr, "protocol {protocol}");
            assert_eq!(found.shape, shape, "protocol {protocol}");
            assert_eq!(found.fortran_order, fortran_order, "protocol {protocol}");
            assert_eq!(*found.data, *data, "protocol {protocol}");
        };
        check(0, "|u1", &[2, 3], false, &[0, 1, 2, 3, 4, 5]);
        check(1, "|u1", &[2, 3], true, &[0, 3, 1, 4, 2, 5]);
        let floats = [1.5_f64, -2.0].map(f64::to_be_bytes).concat();
        check(2, ">f8", &[2], false, &floats);
        check(3, "<f4", &[], false, &2.5_f32.to_le_bytes());
        assert_eq!(arrays[3].n_elements(), 1);
        let text = ['a', 'b', 'c', '\0'].map(|letter| u32::from(letter).to_le_bytes()).concat();
        check(4, "<U2", &[2], false, &text);
    }
}

/// The form of CIFAR-10's batches: Python 2, protocol 0.
const CIFAR10: &[u8] = b"(dp1\nS'data'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\n\
    p4\n(I0\ntS'b'\ntRp5\n(I1\n(I2\nI3\ntcnumpy\ndtype\np6\n(S'u1'\nI0\nI1\ntRp7\n(I3\nS'|'\nNNNI-1\n\
    I-1\nI0\ntbI00\nS'\\x00\\x01\\n\\'\\xff\\\\'\ntbsS'labels'\np8\n(lp9\nI6\naI9\nas.";

/// The form of CIFAR-100's: Python 2, protocol 2.
const CIFAR100: &[u8] = b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03\
    cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00\
    K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\n'\xff\\tb\
    U\x06labelsq\x08]q\x09(K\x06K\x09eu.";

#[test]
fn batches_of_cifar_are_read_as_python_2_wrote_them() {
    for pickle in [CIFAR10, CIFAR100] {
        let batch = whole(pickle);
        let data = NdArray::from_value(batch.get("data").unwrap()).unwrap();
        assert_eq!((data.descr.as_str(), &data.shape[..]), ("|u1", &[2, 3][..]));
        assert_eq!(*data.data, *b"\x00\x01\n'\xff\\");
        assert_eq!(batch.get("labels"), Some(&ints(&[6, 9])));
    }
}

#[test]
fn arrays_that_do_not_fit_their_shape_are_refused() {
    let check = |from: &[u8], to: &[u8], expected: &str| {
        let at = CIFAR100.windows(from.len()).position(|window| window == from).unwrap();
        let mut pickle = CIFAR100.to_vec();
        pickle.splice(at..at + from.len(), to.iter().copied());
        let batch = whole(&pickle);
        let error = NdArray::from_value(batch.get("data").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        b"K\x02K\x03\x86",
        b"K\x02K\x04\x86",
        "numpy array of |u1 and shape [2, 4] expected 8 bytes, got 6",
    );
    check(
        b"K\x02K\x03\x86",
        b"K\x02J\xff\xff\xff\xff\x86",
        "numpy array has an invalid shape: a tuple of 2",
    );
    check(b"U\x02u1", b"U\x02O8", "numpy elements of type `O8` are not supported");
    check(b"U\x02u1", b"U\x02u0", "numpy elements of type `u0` are not supported");
    check(
        b"cnumpy\ndtype",
        b"cposix\nsystem",
        "numpy array has an invalid dtype: a `posix.system` object",
    );
    check(
        b"core.multiarray\n_rec",
        b"core.multiarray\n_wre",
        "expected a numpy array, got a `numpy.core.multiarray._wreonstruct` object",
    );
}

#[test]
fn pickles_may_follow_one_another() {
    let bytes = [b"\x80\x02K\x01.", &b"I2\n."[..], b"rest"].concat();
    let (first, consumed) = parse(&bytes).unwrap();
    let (second, more) = parse(&bytes[consumed..]).unwrap();
    assert_eq!((first, second), (Value::Int(1), Value::Int(2)));
    assert_eq!(&bytes[consumed + more..], b"rest");
}

#[test]
fn a_call_is_recorded_and_not_made() {
    let value = whole(b"cposix\nsystem\n(S'rm -rf /'\ntR.");
    let call = value.as_object().unwrap();
    assert!(call.global().unwrap().is("posix", "system"));
    assert_eq!(call.args(), [bytes(b"rm -rf /")]);
}

#[test]
fn each_way_to_make_an_object_is_recorded() {
    let check = |pickle: &[u8], expected: &str| {
        assert_eq!(format!("{:?}", whole(pickle)), expected);
    };
    let plain =
        "Object { class: m.C, args: (1,), kwargs: None, state: None, items: [], entries: [] }";
    check(b"cm\nC\nK\x01\x85R.", plain);
    check(b"cm\nC\nK\x01\x85\x81.", plain);
    check(b"(cm\nC\nK\x01o.", plain);
    check(b"(K\x01im\nC\n.", plain);
    check(
        b"cm\nC\n)}\x92(K\x01K\x02e(K\x03K\x04uNb.",
        "Object { class: m.C, args: (), kwargs: Some({}), state: Some(None), items: [1, 2], \
         entries: [(3, 4)] }",
    );
    // What protocol 0 writes for an object of a class of one's own.
    check(
        b"ccopy_reg\n_reconstructor\n(cm\nC\nc__builtin__\nobject\nNtR(dS'x'\nI1\nsb.",
        "Object { class: m.C, args: (), kwargs: None, state: Some({b\"x\": 1}), items: [], entries: [] }",
    );
    check(b"S'id'\nQ.", "PersistentId(b\"id\")");
    check(b"Pid\n.", "PersistentId(\"id\")");
}

#[test]
fn ordered_dicts_of_python_2_have_their_items() {
    let value =
        whole(b"ccollections\nOrderedDict\n((lp1\n(lp2\nS'a'\naI1\naa(lp3\nS'b'\naI2\naatR.");
    assert_eq!(value.get("a"), Some(&Value::Int(1)));
    assert_eq!(value.get("b"), Some(&Value::Int(2)));
}

#[test]
fn what_is_put_in_later_is_seen_through_the_memo() {
    // l = []; (l, l); then l.append(1) through the memo.
    assert_eq!(
        whole(b"]q\x00h\x00\x86q\x01h\x00K\x01a0."),
        Value::Tuple([ints(&[1]), ints(&[1])].into())
    );
}

#[test]
fn errors_say_where() {
    let check = |pickle: &[u8], expected: &str| {
        assert_eq!(parse(pickle).unwrap_err().to_string(), expected);
    };
    check(b"", "data end at byte 0: expected 1 more, got 0");
    check(b"X\xff\xff\xff\xffab", "data end at byte 5: expected 4294967295 more, got 2");
    check(b"N\xfe.", "unknown opcode 0xfe at byte 1");
    check(b"\x80\x06N.", "protocol expected at most 5, got 6");
    check(b"K\x01e.", "opcode `APPENDS` at byte 2 found too little on the stack");
    check(b"(a.", "opcode `APPEND` at byte 1 found too little on the stack");
    check(b"NNa.", "opcode `APPEND` at byte 2 expected a list");
    check(b"}(Nu.", "opcode `SETITEMS` at byte 3 expected a value for each key");
    check(b"h\x07.", "memo entry 7 asked for at byte 0 was never stored");
    check(b"X\x01\x00\x00\x00\xff.", "invalid UTF-8 at byte 0");
    check(b"Ix\n.", "invalid decimal integer at byte 0");
    check(b"\x82\x01.", "unsupported extension code of `copyreg` at byte 0");
    check(b"\x97.", "unsupported out-of-band buffer at byte 0");
    check(b"NNR.", "opcode `REDUCE` at byte 2 expected a tuple of arguments");
    check(b"]q\x00h\x00a.", "a value contains itself, so the pickle is no tree of plain data");
    assert!(matches!(parse(b"(N."), Ok((Value::None, 3))));
    assert!(matches!(parse(b"N("), Err(PickleError::Truncated { offset: 2, .. })));
}
