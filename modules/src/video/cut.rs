//! Files that end early where FFmpeg ends them as if they were whole.

use std::io::{BufReader, Read};

use super::media::Media;

/// Whether a file of this container is shorter than it says of itself.
pub(crate) fn is_cut(container: &str, media: &Media) -> bool {
    match container {
        "matroska" => matroska_is_cut(media),
        // A file that cannot be read is reported by the one who reads its packets.
        "gif" => media.open().is_ok_and(|(bytes, _)| gif_is_cut(BufReader::new(bytes))),
        _ => false,
    }
}

/// Whether a GIF ends inside a block. One without the closing byte, but with whole blocks, is taken
/// for whole: many programs write such files.
fn gif_is_cut(mut from: impl Read) -> bool {
    let mut walk = || -> std::io::Result<()> {
        let mut head = [0; 13];
        from.read_exact(&mut head)?;
        skip_colours(&mut from, head[10])?;
        loop {
            let mut kind = [0];
            if from.read(&mut kind)? == 0 {
                return Ok(());
            }
            match kind[0] {
                b'!' => from.read_exact(&mut [0])?,
                b',' => {
                    let mut image = [0; 9];
                    from.read_exact(&mut image)?;
                    skip_colours(&mut from, image[8])?;
                    from.read_exact(&mut [0])?;
                }
                // The closing byte, or something that FFmpeg steps over in its own way.
                _ => return Ok(()),
            }
            skip_blocks(&mut from)?;
        }
    };
    walk().is_err_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// Steps over the colours that the flags of a GIF or of one image announce.
fn skip_colours(from: &mut impl Read, flags: u8) -> std::io::Result<()> {
    let colours = if flags & 0x80 == 0 { 0 } else { 2 << (flags & 7) };
    from.read_exact(&mut [0; 3 * 256][..3 * colours])
}

/// Steps over blocks, each after its length, up to the empty one.
fn skip_blocks(from: &mut impl Read) -> std::io::Result<()> {
    let mut block = [0; 256];
    loop {
        from.read_exact(&mut block[..1])?;
        match usize::from(block[0]) {
            0 => return Ok(()),
            length => from.read_exact(&mut block[1..=length])?,
        }
    }
}

/// Whether a Matroska file is shorter than its segment says. FFmpeg only logs this, and then ends
/// the file as if it were whole.
fn matroska_is_cut(media: &Media) -> bool {
    let mut head = Vec::new();
    let Ok((open, length)) = media.open() else { return false };
    if open.take(4096).read_to_end(&mut head).is_err() {
        return false;
    }
    // Two elements of a four-byte name: the EBML head, and the segment that holds the rest.
    let element = |at: usize| {
        let (body, size) = ebml_size(head.get(at + 4..)?)?;
        Some(((at + 4 + body) as u64, size))
    };
    let Some((body, size)) = element(0) else { return false };
    let segment = body.saturating_add(size);
    let named =
        head.get(segment as usize..).is_some_and(|rest| rest.starts_with(b"\x18\x53\x80\x67"));
    let end = |(body, size): (u64, u64)| body.saturating_add(size);
    named && element(segment as usize).is_some_and(|segment| end(segment) > length)
}

/// (Bytes taken, value) of an EBML size; `None` when it is unknown, as in live streams.
fn ebml_size(bytes: &[u8]) -> Option<(usize, u64)> {
    let first = *bytes.first()?;
    let taken = first.leading_zeros() as usize + 1;
    let rest = bytes.get(1..taken)?;
    let start = u64::from(first) & ((1 << (8 - taken.min(8))) - 1);
    let value = rest.iter().fold(start, |value, byte| value << 8 | u64::from(*byte));
    let unknown = (1u64 << (7 * taken)) - 1;
    (taken <= 8 && value != unknown).then_some((taken, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gif_is_cut_inside_a_block_but_not_between_blocks() {
        let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0".to_vec();
        gif.extend([0; 6]);
        gif.extend(b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;");
        assert!(!gif_is_cut(gif.as_slice()));
        let without_end = &gif[..gif.len() - 1];
        assert!(!gif_is_cut(without_end));
        for length in [8, 15, 25, gif.len() - 2, gif.len() - 4] {
            assert!(gif_is_cut(&gif[..length]), "{length}");
        }
    }
}
