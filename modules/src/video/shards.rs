//! WebDataset shards: tar archives whose members make a clip where their names have one beginning.
//!
//! | member                          | what                                                       |
//! |---------------------------------|------------------------------------------------------------|
//! | `key.mp4` and other videos      | the clip                                                   |
//! | `key.jpg`, `key.png`, `key.webp` | a picture, where there is no video                        |
//! | `key.wav`, `key.flac`, `key.mp3` | sound, instead of the video's                             |
//! | `key.json`                      | an object: fields of the record                            |
//! | `key.txt`, `key.cls`            | fields `txt` and `cls`                                     |
//!
//! The headers are read once; after that a clip is read from its bytes in the archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::lines::Lines;
use super::manifest::{IMAGES, Manifest, ManifestError, Reading, VIDEOS};
use super::media::{Media, Part};
use super::tar::{self, Member};

/// Extensions of sound files.
const SOUNDS: [&str; 6] = ["wav", "flac", "mp3", "ogg", "m4a", "opus"];

/// The largest text in an archive, in bytes.
const LARGEST: u64 = 1 << 20;

/// The most shards that a pattern may name.
const MOST: usize = 100_000;

/// The files that a pattern such as `shards-{000..009}.tar` names; none when it has no braces.
pub(super) fn expand(path: &Path) -> Result<Option<Vec<PathBuf>>, String> {
    let Some(text) = path.to_str().filter(|text| text.contains('{')) else { return Ok(None) };
    let broken =
        || format!("`{text}` is no pattern of shards; write two numbers, such as `{{000..009}}`");
    let (before, rest) = text.split_once('{').ok_or_else(broken)?;
    let (range, after) = rest.split_once('}').ok_or_else(broken)?;
    let (first, last) = range.split_once("..").ok_or_else(broken)?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<usize>().ok()).flatten().ok_or_else(broken)
    };
    let (from, to) = (number(first)?, number(last)?);
    if to < from || to - from >= MOST || after.contains('{') {
        return Err(broken());
    }
    let width = first.len();
    let file = |number| PathBuf::from(format!("{before}{number:0width$}{after}"));
    Ok(Some((from..=to).map(file).collect()))
}

/// The clips of shards, in the order of the shards and of their members. `root` is the folder whose
/// sub-folders are splits.
pub(super) fn read(
    shards: &[PathBuf],
    root: Option<&Path>,
    how: &Reading,
) -> Result<Manifest, ManifestError> {
    let one = |shard: &PathBuf| {
        if !shard.exists() {
            return Err(ManifestError::Missing { path: shard.clone() });
        }
        let split = root.and_then(|root| shard.strip_prefix(root).ok()).and_then(|inner| {
            let mut parts = inner.components();
            let first = parts.next()?.as_os_str().to_string_lossy().into_owned();
            parts.next().map(|_| first)
        });
        shard_file(shard, split.as_deref(), how)
    };
    let mut all = Manifest::default();
    let mut problems = Vec::new();
    for found in shards.par_iter().map(one).collect::<Vec<_>>() {
        match found {
            Ok(found) => all.extend(found),
            Err(ManifestError::Lines { problems: found }) => problems.extend(found),
            Err(other) => return Err(other),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(ManifestError::Lines { problems }) }
}

/// What the members of one name are.
#[derive(Default)]
struct Sample {
    video: Option<Media>,
    image: Option<Media>,
    sound: Option<Media>,
    fields: Map<String, Value>,
}

fn shard_file(shard: &Path, split: Option<&str>, how: &Reading) -> Result<Manifest, ManifestError> {
    let io = |error: std::io::Error| ManifestError::Io {
        path: shard.to_owned(),
        reason: error.to_string(),
    };
    let file = File::open(shard).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut from = BufReader::with_capacity(4096, file);
    let mut lines = Lines::new(shard, how);
    let members = match tar::members(&mut from, length) {
        Ok(members) => members,
        Err(what) => {
            lines.problem("tar", &what);
            return lines.finish();
        }
    };
    let mut samples: Vec<(String, Sample)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut ignored = 0;
    for member in members {
        let Some((key, extension)) = split_name(&member.name) else {
            ignored += 1;
            continue;
        };
        let place = *places.entry(key.clone()).or_insert_with(|| {
            samples.push((key, Sample::default()));
            samples.len() - 1
        });
        match samples[place].1.take(shard, &member, &extension, &mut from) {
            Ok(true) => {}
            Ok(false) => ignored += 1,
            Err(what) => lines.problem(&member.name, &what),
        }
    }
    let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for (key, mut sample) in samples {
        let Some(media) = sample.video.or(sample.image) else {
            lines.unseen += 1;
            continue;
        };
        sample.fields.insert("path".to_owned(), Value::from(format!("{name}/{key}")));
        if let Some(split) = split {
            sample.fields.entry("split").or_insert_with(|| Value::from(split));
        }
        lines.put(&key, sample.fields, Some((media, sample.sound)));
    }
    Ok(Manifest { ignored, ..lines.finish()? })
}

impl Sample {
    /// Takes a member; false when it is none of those that are known.
    fn take(
        &mut self,
        shard: &Path,
        member: &Member,
        extension: &str,
        from: &mut (impl Read + Seek),
    ) -> Result<bool, String> {
        let last = extension.rsplit('.').next().unwrap_or_default();
        let media = || {
            let (name, start, end) = (member.name.clone(), member.start, member.end);
            Media { file: shard.to_owned(), part: Some(Part { name, start, end }) }
        };
        let kinds: [(&[&str], &mut Option<Media>); 3] =
            [(&VIDEOS, &mut self.video), (&IMAGES, &mut self.image), (&SOUNDS, &mut self.sound)];
        for (extensions, place) in kinds {
            if extensions.contains(&last) {
                if place.is_some() {
                    return Err("it is the second of its kind under this name".to_owned());
                }
                *place = Some(media());
                return Ok(true);
            }
        }
        match last {
            "json" => match serde_json::from_str(&text(member, from)?) {
                Ok(Value::Object(fields)) => self.fields.extend(fields),
                Ok(value) => drop(self.fields.insert(extension.to_owned(), value)),
                Err(error) => return Err(format!("not JSON: {error}")),
            },
            "txt" | "cls" => {
                let text = text(member, from)?;
                self.fields.insert(extension.to_owned(), Value::from(text.trim()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Everything before the first dot of a file's name, and what comes after it in lower case.
fn split_name(name: &str) -> Option<(String, String)> {
    let name = name.trim_start_matches("./");
    let file = name.rsplit('/').next()?;
    let (stem, extension) = file.split_once('.')?;
    let key = &name[..name.len() - file.len() + stem.len()];
    (!stem.is_empty()).then(|| (key.to_owned(), extension.to_lowercase()))
}

fn text(member: &Member, from: &mut (impl Read + Seek)) -> Result<String, String> {
    let size = member.end - member.start;
    if size > LARGEST {
        return Err(format!("a text of {size} bytes; at most {LARGEST} are read"));
    }
    let mut bytes = vec![0; size as usize];
    from.seek(SeekFrom::Start(member.start)).map_err(|error| error.to_string())?;
    from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|_| "the text is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, members: &[(&str, &[u8])]) {
        let bytes = members.iter().flat_map(|(name, bytes)| tar::member(name, bytes, b'0'));
        let mut bytes: Vec<u8> = bytes.collect();
        bytes.extend([0; 1024]);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn members_of_one_name_are_one_entry() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &dir.path().join("s-00.tar"),
            &[
                ("./a/1.MP4", b"video"),
                ("./a/1.txt", b" a red disc\n"),
                ("./a/1.jpg", b"thumb"),
                ("./a/1.json", br#"{"label": 3, "captions": {"video": ["x"]}}"#),
                ("2.png", b"picture"),
                ("2.wav", b"sound"),
                ("2.cls", b"7"),
                ("2.npy", b"?"),
                ("3.txt", b"words alone"),
            ],
        );
        write(&dir.path().join("s-01.tar"), &[("1.webm", b"v"), ("1.en.txt", b"hello")]);
        let pattern = dir.path().join("s-{00..01}.tar");
        let found = Manifest::read(&pattern, &Reading::default()).unwrap();
        assert_eq!(found, Manifest::read(dir.path(), &Reading::default()).unwrap());
        let ids: Vec<&str> = found.entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["s-00.tar/a/1", "s-00.tar/2", "s-01.tar/1"]);
        assert_eq!((found.ignored, found.unseen), (1, 1));
        let [first, second, third] = &found.entries[..] else { panic!() };
        assert_eq!(first.record.texts("txt").unwrap(), ["a red disc"]);
        assert_eq!(first.record.texts("captions.video").unwrap(), ["x"]);
        assert_eq!(first.record.integer("label"), Some(3));
        assert_eq!(second.record.integer("cls"), Some(7));
        assert_eq!(third.record.texts("en.txt").unwrap(), ["hello"]);
        let part = |media: &Option<Media>| media.clone().unwrap().part.unwrap().name;
        assert_eq!(part(&Some(first.media.clone())), "./a/1.MP4");
        assert_eq!(part(&second.sound), "2.wav");
        let mut bytes = String::new();
        second.sound.as_ref().unwrap().open().unwrap().0.read_to_string(&mut bytes).unwrap();
        assert_eq!(bytes, "sound");
    }

    #[test]
    fn what_is_wrong_with_shards_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let shard = dir.path().join("s.tar");
        let error = || Manifest::read(&shard, &Reading::default()).unwrap_err().to_string();
        write(&shard, &[("a.mp4", b"v"), ("a.webm", b"v"), ("a.json", b"{"), ("a.txt", &[255])]);
        let text = error();
        for part in ["s.tar:a.webm: it is the second", "a.json: not JSON", "a.txt: the text is not"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        std::fs::write(&shard, &tar::member("a.mp4", &[1; 900], b'0')[..900]).unwrap();
        assert!(error().contains("s.tar:tar: byte 0: a member of 900 bytes"), "{}", error());
        for pattern in
            ["s-{0..}.tar", "s-{3..1}.tar", "s-{a..b}.tar", "s-{0.tar", "s-{0..999999}.tar"]
        {
            let error = Manifest::read(&dir.path().join(pattern), &Reading::default()).unwrap_err();
            assert!(error.to_string().contains("`{000..009}`"), "{error}");
        }
        let gone = dir.path().join("s-{0..2}.tar");
        let error = Manifest::read(&gone, &Reading::default()).unwrap_err().to_string();
        assert!(error.contains("s-0.tar"), "{error}");
    }
}
