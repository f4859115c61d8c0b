//! The table of contents of a zip archive whose entries lie in it as they are.
//!
//! Nothing is unpacked, so the whole reader is this table: the record at the end of the file, the
//! central directory that it names, and the local header before each entry. They must agree; two
//! entries of one name, compression and encryption are refused. Source: APPNOTE 6.3.10 of PKWARE,
//! sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.

use std::collections::BTreeMap;
use std::ops::Range;

use super::mapped::shown;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where its bytes lie.
    pub(super) range: Range<usize>,
    pub(super) crc: u32,
}

/// The most bytes of the record at the end, with its comment.
const MAX_END: usize = 22 + u16::MAX as usize;

/// A little-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<usize, String> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    let found = found.ok_or("is a zip archive that is cut")?;
    let value = found.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).map_err(|_| "is a zip archive larger than the memory".to_owned())
}

fn is_at(file: &[u8], at: usize, sign: &[u8; 4]) -> bool {
    file.get(at..).is_some_and(|rest| rest.starts_with(sign))
}

/// Where the central directory lies, and how many entries it has.
fn directory(file: &[u8]) -> Result<(Range<usize>, usize), String> {
    let first = file.len().saturating_sub(MAX_END);
    let is_end = |at: &usize| {
        is_at(file, *at, b"PK\x05\x06")
            && number::<2>(file, at + 20).is_ok_and(|comment| at + 22 + comment == file.len())
    };
    let end = (first..file.len()).rev().find(is_end);
    let end = end.ok_or("is a zip archive without an end: cut or damaged")?;
    let locator = end.checked_sub(20).filter(|at| is_at(file, *at, b"PK\x06\x07"));
    let (count, size, start) = match locator {
        Some(locator) => {
            let wide = number::<8>(file, locator + 8)?;
            if !is_at(file, wide, b"PK\x06\x06") {
                return Err("is a zip archive whose end is damaged".to_owned());
            }
            let [count, size, start] = [32, 40, 48].map(|part| number::<8>(file, wide + part));
            (count?, size?, start?)
        }
        None => {
            let (size, start) = (number::<4>(file, end + 12)?, number::<4>(file, end + 16)?);
            (number::<2>(file, end + 10)?, size, start)
        }
    };
    let stop = start.checked_add(size).filter(|stop| *stop <= end);
    let stop = stop.ok_or("is a zip archive whose table leaves the file: cut or damaged")?;
    Ok((start..stop, count))
}

/// All entries by name.
pub(super) fn entries(file: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (table, count) = directory(file)?;
    let (mut at, mut found) = (table.start, BTreeMap::new());
    let table = &file[..table.end];
    while at < table.len() {
        if !is_at(table, at, b"PK\x01\x02") {
            return Err("is a zip archive whose table is damaged".to_owned());
        }
        let [name, extra, comment] = [28, 30, 32].map(|part| number::<2>(table, at + part));
        let (name_end, extra, comment) = (at + 46 + name?, extra?, comment?);
        let next = name_end + extra + comment;
        let (Some(name), Some(extra)) =
            (table.get(at + 46..name_end), table.get(name_end..name_end + extra))
        else {
            return Err("is a zip archive whose table is cut".to_owned());
        };
        let text = std::str::from_utf8(name);
        let text = text.map_err(|_| "is a zip archive with a name that is no text".to_owned())?;
        let entry = entry(file, &table[at..], name, extra);
        let entry = entry.map_err(|reason| format!("`{}` {reason}", shown(text)))?;
        if found.insert(text.to_owned(), entry).is_some() {
            return Err(format!("holds `{}` twice", shown(text)));
        }
        at = next;
    }
    if found.len() != count || at != table.len() {
        return Err(format!("has {} of {count} entries: damaged", found.len()));
    }
    Ok(found)
}

/// An entry out of its line in the table.
fn entry(file: &[u8], line: &[u8], name: &[u8], extra: &[u8]) -> Result<Entry, String> {
    let (flags, method) = (number::<2>(line, 8)?, number::<2>(line, 10)?);
    if name.windows(6).any(|part| part == b"/code/") {
        return Err("is of a TorchScript program; save the state dict of the module".to_owned());
    }
    if method != 0 || flags & 1 != 0 {
        return Err("is compressed or encrypted, which torch.save never does; unpack the archive \
                    and pack it again without compression"
            .to_owned());
    }
    let crc = number::<4>(line, 16)? as u32;
    let mut numbers = [number::<4>(line, 24)?, number::<4>(line, 20)?, number::<4>(line, 42)?];
    if numbers.contains(&0xffff_ffff) {
        let wide = wide(extra)?;
        let mut taken = 0;
        for number in numbers.iter_mut().filter(|number| **number == 0xffff_ffff) {
            *number = self::number::<8>(wide, taken)?;
            taken += 8;
        }
    }
    let [size, packed, header] = numbers;
    if size != packed {
        return Err("has two sizes: damaged".to_owned());
    }
    if !is_at(file, header, b"PK\x03\x04") {
        return Err("is not where the table says: damaged".to_owned());
    }
    let begin = header + 30;
    let (length, extra) = (number::<2>(file, header + 26)?, number::<2>(file, header + 28)?);
    if file.get(begin..begin + length) != Some(name) {
        return Err("has another name where it lies: damaged".to_owned());
    }
    let start = begin + length + extra;
    let end = start.checked_add(size).filter(|end| *end <= file.len());
    let end = end.ok_or("leaves the file: cut or damaged")?;
    Ok(Entry { range: start..end, crc })
}

/// The extra field with numbers of 64 bits.
fn wide(extra: &[u8]) -> Result<&[u8], String> {
    let mut at = 0;
    loop {
        let (id, length) = (number::<2>(extra, at)?, number::<2>(extra, at + 2)?);
        let field = extra.get(at + 4..at + 4 + length);
        let field = field.ok_or("has a damaged extra field")?;
        if id == 1 {
            return Ok(field);
        }
        at += 4 + length;
    }
}
