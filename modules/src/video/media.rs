//! Where the bytes of a clip lie: a file, or a part of one.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A file, or the bytes of one member of an archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Media {
    /// The file; absolute, or relative to the working directory.
    pub file: PathBuf,
    /// The part that counts; all of the file when absent.
    pub part: Option<Part>,
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Its name in the archive.
    pub name: String,
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl From<PathBuf> for Media {
    fn from(file: PathBuf) -> Self {
        Self { file, part: None }
    }
}

impl From<&Path> for Media {
    fn from(file: &Path) -> Self {
        file.to_owned().into()
    }
}

impl From<&PathBuf> for Media {
    fn from(file: &PathBuf) -> Self {
        file.clone().into()
    }
}

impl From<&Media> for Media {
    fn from(media: &Media) -> Self {
        media.clone()
    }
}

impl Media {
    /// The path that messages show, which is also a name of its own: `shard.tar/clip.mp4`.
    pub fn path(&self) -> PathBuf {
        match &self.part {
            None => self.file.clone(),
            Some(part) => self.file.join(part.name.trim_start_matches('/')),
        }
    }

    /// The address that FFmpeg opens. The prefix keeps `a:b.mp4` from being taken for a protocol.
    pub(super) fn url(&self) -> Result<CString, String> {
        let mut url = match &self.part {
            None => b"file:".to_vec(),
            Some(Part { start, end, .. }) => {
                format!("subfile,,start,{start},end,{end},,:file:").into_bytes()
            }
        };
        url.extend_from_slice(self.file.as_os_str().as_encoded_bytes());
        CString::new(url).map_err(|_| "the path holds a zero byte".to_owned())
    }

    /// Its bytes, and how many there are.
    pub(super) fn open(&self) -> std::io::Result<(impl Read + use<>, u64)> {
        let mut file = File::open(&self.file)?;
        let length = match &self.part {
            None => file.metadata()?.len(),
            Some(Part { start, end, .. }) => {
                file.seek(SeekFrom::Start(*start))?;
                end - start
            }
        };
        Ok((file.take(length), length))
    }
}
