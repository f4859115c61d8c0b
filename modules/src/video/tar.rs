//! The headers of a tar archive: which member lies where.
//!
//! Read are plain archives: ustar, GNU long names, pax paths and sizes. Contents are not read, and
//! nothing is unpacked.

use std::io::{Read, Seek, SeekFrom};

/// Bytes of a header, and what contents are rounded up to.
const BLOCK: u64 = 512;

/// The longest name or pax header, in bytes.
const LONGEST: u64 = 64 << 10;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its path.
    pub(super) name: String,
    /// Where its contents begin.
    pub(super) start: u64,
    /// Where they end; not beyond the archive.
    pub(super) end: u64,
}

/// What headers before a member say of it.
#[derive(Default)]
struct Ahead {
    name: Option<String>,
    size: Option<u64>,
}

/// Lists the files of an archive of `length` bytes. An error says at which byte.
pub(super) fn members(from: &mut (impl Read + Seek), length: u64) -> Result<Vec<Member>, String> {
    let mut found = Vec::new();
    let mut ahead = Ahead::default();
    let mut at = 0;
    while at < length {
        let fail = |what: String| format!("byte {at}: {what}");
        if length - at < BLOCK {
            return Err(fail("the archive ends inside a header; fetch it again".to_owned()));
        }
        let mut header = [0; BLOCK as usize];
        let io = |error: std::io::Error| fail(error.to_string());
        from.seek(SeekFrom::Start(at)).map_err(io)?;
        from.read_exact(&mut header).map_err(io)?;
        if header == [0; BLOCK as usize] {
            break;
        }
        check(&header, at).map_err(fail)?;
        let kind = header[156];
        let stated = number(&header[124..136]).map_err(fail)?;
        // Links, folders and devices have no contents, whatever they state.
        let size = match kind {
            b'1'..=b'6' => 0,
            b'L' | b'K' | b'x' | b'g' => stated,
            _ => ahead.size.unwrap_or(stated),
        };
        let start = at + BLOCK;
        if size > length - start {
            let left = length - start;
            let what = format!("a member of {size} bytes has {left} left; fetch the archive again");
            return Err(fail(what));
        }
        match kind {
            b'L' => ahead.name = Some(name_of(&contents(from, size).map_err(fail)?)),
            b'x' => pax(&contents(from, size).map_err(fail)?, &mut ahead).map_err(fail)?,
            b'K' | b'g' => {}
            b'S' => return Err(fail("sparse members are not read; write a plain tar".to_owned())),
            _ => {
                let ahead = std::mem::take(&mut ahead);
                if matches!(kind, 0 | b'0' | b'7') {
                    let name = ahead.name.unwrap_or_else(|| stated_name(&header));
                    found.push(Member { name, start, end: start + size });
                }
            }
        }
        at = start + size.div_ceil(BLOCK) * BLOCK;
    }
    Ok(found)
}

/// Refuses what is no header.
fn check(header: &[u8; BLOCK as usize], at: u64) -> Result<(), String> {
    let packed = header.starts_with(&[0x1f, 0x8b])
        || header.starts_with(b"BZh")
        || header.starts_with(b"\xfd7zXZ")
        || header.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    if at == 0 && packed {
        return Err("the archive is compressed; unpack it to a plain .tar".to_owned());
    }
    let stated = number(&header[148..156])?;
    let outside = |place: usize| !(148..156).contains(&place);
    let byte = |(place, byte): (usize, &u8)| if outside(place) { *byte } else { b' ' };
    let bytes = || header.iter().enumerate().map(byte);
    let plain: u64 = bytes().map(u64::from).sum();
    // Old programs took bytes for signed numbers.
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    if plain == stated || i64::try_from(stated) == Ok(signed) {
        return Ok(());
    }
    Err("this is no header of a tar archive; fetch it again".to_owned())
}

/// A number in octal digits, or in GNU's binary form.
fn number(field: &[u8]) -> Result<u64, String> {
    let large = || "a number in a header is too large".to_owned();
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..].iter().try_fold(first, |value, byte| {
            value.checked_mul(256).map(|value| value | u64::from(*byte)).ok_or_else(large)
        });
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => {
            value.checked_mul(8).map(|value| value | u64::from(byte - b'0')).ok_or_else(large)
        }
        _ => Err("a number in a header is not octal".to_owned()),
    })
}

/// The name in a header itself.
fn stated_name(header: &[u8; BLOCK as usize]) -> String {
    let name = name_of(&header[..100]);
    // GNU's headers have other things where ustar has a prefix.
    let prefix =
        if &header[257..263] == b"ustar\0" { name_of(&header[345..500]) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

/// Text up to the first zero byte.
fn name_of(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The contents of a header of names.
fn contents(from: &mut impl Read, size: u64) -> Result<Vec<u8>, String> {
    if size > LONGEST {
        return Err(format!("a name or pax header has {size} bytes, more than {LONGEST}"));
    }
    let mut bytes = vec![0; size as usize];
    from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Lines `length key=value` of a pax header.
fn pax(mut bytes: &[u8], ahead: &mut Ahead) -> Result<(), String> {
    let broken = || "a pax header is broken; fetch the archive again".to_owned();
    while bytes.iter().any(|byte| *byte != 0) {
        let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length = std::str::from_utf8(&bytes[..blank]).ok().and_then(|text| text.parse().ok());
        let length: usize = length.ok_or_else(broken)?;
        let line = bytes.get(blank + 1..length).ok_or_else(broken)?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        let value = String::from_utf8_lossy(&line[equals + 1..]).into_owned();
        match &line[..equals] {
            b"path" => ahead.name = Some(value),
            b"size" => ahead.size = Some(value.parse().map_err(|_| broken())?),
            key if key.starts_with(b"GNU.sparse") => {
                return Err("sparse members are not read; write a plain tar".to_owned());
            }
            _ => {}
        }
        bytes = &bytes[length..];
    }
    Ok(())
}

/// Writes a header, for tests.
#[cfg(test)]
pub(super) fn header(name: &[u8], size: u64, kind: u8) -> Vec<u8> {
    let mut header = vec![0; BLOCK as usize];
    header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Writes a member with padding, for tests.
#[cfg(test)]
pub(super) fn member(name: &str, contents: &[u8], kind: u8) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), contents.len() as u64, kind);
    bytes.extend(contents);
    bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn list(bytes: &[u8]) -> Result<Vec<Member>, String> {
        members(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    fn sample() -> Vec<u8> {
        let long = format!("deep/{}/clip.mp4", "n".repeat(120));
        let line = |key: &str, value: &str| {
            let rest = format!(" {key}={value}\n");
            let length = (1..=4).map(|digits| rest.len() + digits);
            let length = length.filter(|length| length.to_string().len() + rest.len() == *length);
            format!("{}{rest}", length.max().unwrap())
        };
        let mut bytes = member("a/b.mp4", b"12345", b'0');
        bytes.extend(member("folder/", b"", b'5'));
        bytes.extend(member("././@LongLink", format!("{long}\0").as_bytes(), b'L'));
        bytes.extend(member(&long[..99], &[7; 513], 0));
        let pax = line("mtime", "1.5") + &line("path", "p\u{e9}/x.txt");
        bytes.extend(member("PaxHeaders/x", pax.as_bytes(), b'x'));
        bytes.extend(member("x.txt", b"hello", b'0'));
        bytes.extend([0; 1024]);
        bytes
    }

    #[test]
    fn files_are_listed_with_their_long_names() {
        let bytes = sample();
        let found = list(&bytes).unwrap();
        let names: Vec<&str> = found.iter().map(|member| member.name.as_str()).collect();
        let long = format!("deep/{}/clip.mp4", "n".repeat(120));
        assert_eq!(names, ["a/b.mp4", &long, "p\u{e9}/x.txt"]);
        let of = |at: usize| &bytes[found[at].start as usize..found[at].end as usize];
        assert_eq!((of(0), of(1), of(2)), (&b"12345"[..], &[7; 513][..], &b"hello"[..]));
        // Without the zero blocks at its end an archive is whole as well.
        assert_eq!(list(&bytes[..bytes.len() - 1024]).unwrap(), found);
        assert_eq!(list(&[]).unwrap(), []);
        let mut prefixed = header(b"clip.mp4", 0, b'0');
        prefixed[345..348].copy_from_slice(b"dir");
        prefixed[148..156].fill(b' ');
        let sum: u64 = prefixed.iter().map(|byte| u64::from(*byte)).sum();
        prefixed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(list(&prefixed).unwrap()[0].name, "dir/clip.mp4");
    }

    #[test]
    fn what_is_no_plain_archive_says_so() {
        let bytes = sample();
        for (bytes, part) in [
            (&bytes[..515], "byte 0: a member of 5 bytes has 3 left"),
            (&bytes[..1500], "byte 1024: the archive ends inside a header"),
            (&[0x1f, 0x8b].repeat(400)[..], "compressed"),
            (&[b'x'; 600][..], "byte 0"),
            (&header(b"a", 1 << 32, b'0')[..], "has 0 left"),
            (&header(b"a", 0, b'S')[..], "sparse"),
            (&member("a", &[b'a'; 70_000], b'L')[..], "70000 bytes, more than 65536"),
            (&member("a", b"99 path=x\n", b'x')[..], "pax header is broken"),
            (&member("a", b"0 path=x\n", b'x')[..], "pax header is broken"),
        ] {
            let error = list(bytes).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = list(&bytes);
        }

        #[test]
        fn changed_archives_are_listed_within_their_bounds_or_refused(
            changes in prop::collection::vec((0usize..4096, any::<u8>()), 1..8),
            cut in 0usize..6000,
            repair: bool,
        ) {
            let mut bytes = sample();
            bytes.truncate(cut.max(1));
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
                // A checksum that fits lets the change through.
                let block = at / 512 * 512;
                if repair && bytes.len() >= block + 512 {
                    let header = &mut bytes[block..block + 512];
                    header[148..156].fill(b' ');
                    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
                    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            if let Ok(found) = list(&bytes) {
                for member in found {
                    prop_assert!(member.start <= member.end && member.end <= bytes.len() as u64);
                }
            }
        }
    }
}
