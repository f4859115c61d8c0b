//! Damaged and hostile weight files: every one is an error or reads as what it says.

use std::path::Path;

use modules::archive::Archive;
use proptest::prelude::*;

fn sample(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/archives");
    std::fs::read(folder.join(name)).unwrap()
}

/// The tensors of some bytes, or the message.
fn read(bytes: &[u8]) -> Result<Vec<(String, String, Vec<u8>)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, bytes).unwrap();
    let archive = Archive::open(&path).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for (key, info) in archive.keys() {
        let stored = archive.get(key).map_err(|error| error.to_string())?;
        let product: usize = info.shape.iter().product();
        assert_eq!(product * info.dtype.size(), stored.bytes.len());
        let what = format!("{} {:?}", info.dtype, info.shape);
        all.push((key.to_owned(), what, stored.bytes.into_owned()));
    }
    Ok(all)
}

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    for name in ["small.safetensors", "small.pt", "small_stream.pt"] {
        let whole = sample(name);
        assert!(read(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{name} cut to {length} bytes");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert!(read(&longer).is_err(), "{name} with a byte more");
    }
}

#[test]
fn every_single_byte_flip_of_a_torch_archive_is_an_error_or_harmless() {
    let whole = sample("small.pt");
    let right = read(&whole).unwrap();
    for at in 0..whole.len() {
        for bits in [0xff, 0x01] {
            let mut bytes = whole.clone();
            bytes[at] ^= bits;
            if let Ok(found) = read(&bytes) {
                assert_eq!(found, right, "byte {at} with {bits:#x}");
            }
        }
    }
}

#[test]
fn every_single_byte_flip_of_a_file_without_checksums_keeps_its_promises() {
    for name in ["small.safetensors", "small_stream.pt", "unchecked.pt"] {
        let whole = sample(name);
        let held = whole.len();
        for at in 0..held {
            for bits in [0xff, 0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= bits;
                if let Ok(found) = read(&bytes) {
                    assert!(found.iter().all(|(_, _, bytes)| bytes.len() < held), "{name} {at}");
                }
            }
        }
    }
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn entry(key: &str, shape: &str, from: usize, to: usize) -> String {
    format!("\"{key}\":{{\"dtype\":\"U8\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
}

#[test]
fn headers_that_lie_are_refused_with_the_key() {
    let two = |b: &str| format!("{{{},{b}}}", entry("a", "[4]", 0, 4));
    for (header, data, words) in [
        (two(&entry("b", "[4]", 2, 6)), 6, "`b`: its bytes 2 to 6 overlap"),
        (two(&entry("b", "[2]", 6, 8)), 8, "`b`: its bytes 6 to 8 follow a hole"),
        (two(&entry("b", "[4]", 4, 8)), 9, "holds 9 bytes of tensors"),
        (two(&entry("b", "[4]", 4, 8)), 7, "`b`: its bytes 4 to 8 leave the file"),
        (two(&entry("b", "[4]", 8, 4)), 8, "end before they start"),
        (two(&entry("b", "[5]", 4, 8)), 8, "`b`: [5] of u8 does not fill 4 bytes"),
        (two(&entry("b", "[-4]", 4, 8)), 8, "`b`: invalid value"),
        (two(&entry("a", "[4]", 4, 8)), 8, "`a` appears twice"),
        (two(&entry("b", "[4294967296,4294967297]", 4, 8)), 8, "is too large"),
        (two(&entry("b", "[18446744073709551615,2,0]", 4, 4)), 4, "is too large"),
        (format!("{{{}}}", entry("a", "[1]", 0, usize::MAX)), 1, "leave the file"),
        ("[1]".to_owned(), 0, "cannot be read"),
        ("[".repeat(100_000), 0, "cannot be read"),
        ("{}".to_owned(), 0, "holds no tensors"),
    ] {
        let text = read(&safetensors(&header, data)).unwrap_err();
        assert!(text.contains(words), "{words}: {text}");
    }
    let mut lie = safetensors("{}", 0);
    lie[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(read(&lie).unwrap_err().contains("its header would have"));
    lie[..8].copy_from_slice(&99_999_999u64.to_le_bytes());
    assert!(read(&lie).unwrap_err().contains("is cut: its header has 99999999 bytes"));
}

fn text(text: &str) -> Vec<u8> {
    [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn integer(value: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &value.to_le_bytes()].concat()
}

/// The old format, with one storage of four floats named `0`, around a program.
fn stream(program: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let mut bytes = [&magic[..], b"\x80\x02M\xe9\x03.", b"\x80\x02}.", program].concat();
    bytes.extend([&b"\x80\x02]"[..], &text("0"), b"a."].concat());
    bytes.extend(4u64.to_le_bytes());
    bytes.extend([0; 16]);
    bytes
}

/// A call that makes a tensor of the storage.
fn tensor(first: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let tuple = |numbers: &[i64]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| integer(*n)).collect();
        [&b"("[..], &numbers, b"t"].concat()
    };
    [
        &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x04tQ",
        &integer(first),
        &tuple(shape),
        &tuple(strides),
        b"\x89}tR",
    ]
    .concat()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> =
        entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [&b"\x80\x02}("[..], &entries, b"u."].concat()
}

#[test]
fn tensors_that_leave_their_storage_are_refused() {
    assert_eq!(read(&stream(&dict(&[("w", tensor(0, &[4], &[1]))]))).unwrap()[0].1, "f32 [4]");
    for (first, shape, strides, words) in [
        (1, vec![4], vec![1], "`w`: [4] with strides [1] from element 1 reaches beyond"),
        (0, vec![4], vec![-1], "the stride of a tensor is negative: -1"),
        (0, vec![-4], vec![1], "the shape of a tensor is negative"),
        (-1, vec![4], vec![1], "the offset of a tensor is negative"),
        (0, vec![2, 2], vec![1], "another number of strides"),
        (0, vec![i64::MAX, i64::MAX], vec![0, 0], "is too large"),
        (0, vec![1 << 33], vec![0], "more memory than the file"),
        (i64::MAX, vec![1], vec![1], "reaches beyond"),
        (0, vec![2, 1], vec![i64::MAX, i64::MAX], "reaches beyond"),
        (0, vec![1; 65], vec![1; 65], "has 65 axes"),
    ] {
        let text = read(&stream(&dict(&[("w", tensor(first, &shape, &strides))]))).unwrap_err();
        assert!(text.contains(words), "{words}: {text}");
    }
    let wide = dict(&[("w", tensor(3, &[1, 1], &[i64::MAX, i64::MAX]))]);
    assert_eq!(read(&stream(&wide)).unwrap()[0].1, "f32 [1, 1]");
}

#[test]
fn programs_that_nest_repeat_or_call_are_refused_or_told() {
    let one = tensor(0, &[4], &[1]);
    let deep = [&b"\x80\x02"[..], &b"}X\x01\x00\x00\x00a".repeat(100_000), &one].concat();
    let deep = [&deep[..], &vec![b's'; 100_000], b"."].concat();
    let twice = dict(&[("a.b", one.clone()), ("a", [&b"}"[..], &text("b"), &one, b"s"].concat())]);
    let itself = [&b"\x80\x02}q\x00"[..], &text("a"), b"h\x00s", &text("w"), &one, b"s."].concat();
    let attack = dict(&[("w", one.clone()), ("x", b"cos\nsystem\n)R".to_vec())]);
    let built = dict(&[("w", one.clone()), ("x", b"c__builtin__\neval\n)\x81".to_vec())]);
    let laughs: Vec<u8> = (0..60u8)
        .flat_map(|at| {
            [b']', b'q', at, b'(', b'h', at.saturating_sub(1), b'h', at.saturating_sub(1), b'e']
        })
        .collect();
    let laughs =
        [&b"\x80\x02"[..], &laughs, b"0}", &text("w"), &one, b"s", &text("x"), b"h\x3bs."].concat();
    for (program, words) in [
        (deep, "is nested too deeply"),
        (twice, "`a.b` appears twice"),
        (itself, "is nested too deeply"),
        (attack, "it would call `os.system`"),
        (built, "it would call `__builtin__.eval`"),
        (laughs, "is nested too deeply"),
        (b"\x80\x09.".to_vec(), "protocol 9"),
        (b"\x80\x02i.".to_vec(), "instruction `i`"),
        (b"\x80\x02h\x05.".to_vec(), "recalls 5"),
    ] {
        let text = read(&stream(&program)).unwrap_err();
        assert!(text.contains(words), "{words}: {text}");
    }
    let copies =
        [&b"\x80\x02ccollections\nOrderedDict\nq\x00(("[..], &b"N".repeat(200_000), b"ltq\x01"]
            .concat();
    let copies = [&copies[..], &b"cbuiltins\nset\nh\x01R".repeat(2000), b"."].concat();
    let text = read(&stream(&copies)).unwrap_err();
    assert!(text.contains("calls make more than"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn several_changed_bytes_never_panic(
        which in 0usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let names = [
            "small.safetensors", "types.pt", "views_stream.pt", "protocol4.pt", "unchecked.pt",
            "training.pt",
        ];
        let mut bytes = sample(names[which]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn any_program_ends(program in prop::collection::vec(prop_oneof![
        any::<u8>().boxed(),
        prop::sample::select(b"(.tql]}us)RQbNK\x85\x86\x94\x93\x8c".to_vec()).boxed(),
    ], 0..200)) {
        let _ = read(&stream(&[&b"\x80\x02"[..], &program].concat()));
    }
}
